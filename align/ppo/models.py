"""The networks of PPO in one module: policy, value model, reference.

Sequences are ``prompt + completion`` padded on the **right**: in a causal model no real token ever
sees that padding, so no attention mask is needed and its amount can't change a result. Only hidden
states that predict a completion token reach the LM head, and those in chunks.
"""

import copy
import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from align import checkpoint as checkpoint_files
from align.checkpoint import decoder_layers
from align.ppo.lora import merged
from align.ppo.loss import entropy
from align.ppo.sharding import Replica, at_rest
from align.ppo.trunk import Trunk, above, replaced, trunk_states

CHUNK_LOGITS = 2**24  # logits held at once (64 MiB in float32)
LENGTHS, ROWS = 8, 64  # what lengths and numbers of states are multiples of; see shape_step
POLICY, VALUE, REWARD = "default", "value", "reward"
"""Adapters; peft saves "default" where every loader looks."""


class Sequences(NamedTuple):
    """Prompts with their completions, padded on the right.

    Attributes:
        ids: ``(B, L)``
        prompt_lengths: ``(B,)``
        completion_lengths: ``(B,)``, each at least 1
        trunk: states ``(B, L, H)`` that networks share; None: there are none, or not yet
    """

    ids: Tensor
    prompt_lengths: Tensor
    completion_lengths: Tensor
    trunk: Trunk | None = None

    def rows(self, index: Tensor) -> "Sequences":
        """The rows ``index`` (b,) without columns that are padding in all of them."""
        prompt, completion = self.prompt_lengths[index], self.completion_lengths[index]
        longest = int((prompt + completion).max())
        trunk = self.trunk and self.trunk._replace(states=self.trunk.states[index, :longest])
        return Sequences(self.ids[index, :longest], prompt, completion, trunk)

    @property
    def lengths(self) -> Tensor:
        """``(B,)``, of prompt and completion together."""
        return self.prompt_lengths + self.completion_lengths

    def to(self, device: Any) -> "Sequences":
        """On another device."""
        ids, prompts, completions, trunk = self
        trunk = trunk and trunk._replace(states=trunk.states.to(device))
        return Sequences(ids.to(device), prompts.to(device), completions.to(device), trunk)

    def states(self, extra: int = 0) -> tuple[Tensor, Tensor]:
        """(row, column), each ``(N,)``, of the states before each completion token, row by row.

        ``extra=1`` adds the state after the last token of each row.
        """
        lengths = self.completion_lengths + extra
        row = torch.repeat_interleave(lengths)  # (N,)
        first = lengths.cumsum(0) - lengths  # (B,)
        offset = torch.arange(len(row), device=row.device) - first[row]
        return row, self.prompt_lengths[row] - 1 + offset


class TokenStats(NamedTuple):
    """Per real completion token, row by row: log-probability and entropy, each ``(N,)``."""

    logprobs: Tensor
    entropy: Tensor | None


class Head(NamedTuple):
    """The LM head: hidden states ``(N, H)`` to logits ``(N, V)`` in float32."""

    linear: Any
    scale: float
    softcap: float | None
    step: int
    """Rows are rounded up to a multiple of it, see `shape_step`."""

    @classmethod
    def of(cls, lm: PreTrainedModel) -> "Head":
        """The head of a model, with the scaling that Cohere, Granite and Gemma add to it."""
        config = lm.config
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None)
        linear = lm.get_output_embeddings()
        return cls(linear, scale, softcap, shape_step(linear, ROWS))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits ``(N, V)`` of hidden states ``(N, H)``."""
        n = len(hidden)
        logits = self.linear(F.pad(hidden, (0, 0, 0, -n % self.step)))[:n].float() * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, adapters in place; else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore


def token_stats(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float, *, with_entropy: bool
) -> TokenStats:
    """Log-probabilities of tokens in chunks, so that all logits never exist at once.

    Args:
        head: the LM head
        hidden: ``(N, H)``
        targets: ``(N,)``
        temperature: that of sampling
        with_entropy: whether entropies are wanted too
    """

    def chunk(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(h) / temperature  # (n, V)
        logprobs = -F.cross_entropy(logits, y, reduction="none")  # (n,)
        return logprobs, entropy(logits) if with_entropy else logprobs.detach()

    size = max(1, CHUNK_LOGITS // head.linear.weight.shape[0])
    pieces = list(zip(hidden.split(size), targets.split(size), strict=True))
    recompute = torch.is_grad_enabled() and len(pieces) > 1
    done = [
        checkpoint(chunk, h, y, use_reentrant=False) if recompute else chunk(h, y)
        for h, y in pieces
    ]
    logprobs = torch.cat([d[0] for d in done])
    return TokenStats(logprobs, torch.cat([d[1] for d in done]) if with_entropy else None)


class Networks(nn.Module):
    """Policy, value model and reference, together so that accelerate prepares one module.

    Full fine-tuning: three models. LoRA: one backbone with the adapters ``default`` and ``value``,
    and ``reward`` where the reward model is an adapter of it too; the reference is the backbone
    with its adapters off.
    One call runs one of them: with adapters, a backward pass must follow its own forward pass
    before the other adapter is switched on, and with several models it halves the activations held.
    """

    def __init__(self, policy: nn.Module, value_backbone: nn.Module | None, value_head: nn.Linear):
        super().__init__()
        self.policy: Any = policy
        self.value_backbone = value_backbone  # None: the policy's, with the value adapter
        self.value_head = value_head
        self.reference: nn.Module | None = None  # None: the policy's backbone
        self.reward_head: nn.Linear | None = None  # None: the reward model is elsewhere
        self.trunk_layers = 0  # of policy, value model and reference alike, see `trunk`
        # The modules that sharding cuts the weights at, as in the transformers model.
        self._no_split_modules = causal_lm(policy)._no_split_modules
        self.replica: Replica | None = None  # of the policy, where weights are cut into pieces

    def forward(
        self,
        which: str,
        sequences: Sequences,
        temperature: float = 1.0,
        with_entropy: bool = False,
        extra: int = 0,
    ) -> Any:
        """``"policy"``, ``"reference"``: TokenStats (N,); ``"value"``: values (N,), N + B of them
        with extra=1; ``"reward"``: the reward head's output (N,); ``"trunk"``: states (B, L, H).
        """
        if which == "value":
            return self._scalars(VALUE, self.value_head, sequences, extra)
        if which == "reward":
            assert self.reward_head is not None
            return self._scalars(REWARD, self.reward_head, sequences, extra)
        self._activate(POLICY)
        if which == "trunk":
            return first_states(causal_lm(self.policy).base_model, sequences, self.trunk_layers)
        if which == "reference":
            return self._reference_stats(sequences, temperature)
        lm = causal_lm(self.policy)
        return policy_stats(lm, sequences, temperature, with_entropy)

    def _scalars(self, adapter: str, head: nn.Linear, sequences: Sequences, extra: int) -> Tensor:
        self._activate(adapter)
        backbone = self.value_backbone or causal_lm(self.policy).base_model
        hidden = hidden_states(backbone, sequences, sequences.states(extra))  # (N, H)
        return head(hidden.to(head.weight.dtype)).float().sum(-1)  # no view, which FSDP2 minds

    @torch.no_grad()
    def _reference_stats(self, sequences: Sequences, temperature: float) -> TokenStats:
        if self.reference is not None:
            lm = causal_lm(self.reference)
            return policy_stats(lm, sequences, temperature, with_entropy=False)
        with self._same_grads(), self.policy.disable_adapter():
            lm = causal_lm(self.policy)
            return policy_stats(lm, sequences, temperature, with_entropy=False)

    def _activate(self, adapter: str) -> None:
        """Switch adapters."""
        if self.value_backbone is None and self.policy.active_adapters != [adapter]:
            with self._same_grads():
                self.policy.set_adapter(adapter)

    @contextmanager
    def _same_grads(self) -> Iterator[None]:
        """Undo what peft does on the way: adapters it leaves are frozen, one it enters is not."""
        before = [(p, p.requires_grad) for p in self.policy.parameters()]
        try:
            yield
        finally:
            for parameter, trained in before:
                parameter.requires_grad_(trained)

    @contextmanager
    def sampling(self) -> Iterator[PreTrainedModel]:
        """The policy in eval mode, for generation."""
        device = self.value_head.weight.device
        cast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if cast else None
        with self.whole_policy(device, dtype) as policy, torch.no_grad(), merged(policy):
            self.eval()
            try:
                yield causal_lm(policy)
            finally:
                self.train()

    def prepare_sampling_in_pieces(self) -> None:
        """Make the plain copy that samples; before the weights are cut."""
        self._activate(POLICY)  # the copy keeps the adapter that is on now
        self.replica = Replica(self.policy)

    @contextmanager
    def whole_policy(self, device: Any, dtype: torch.dtype | None = None) -> Iterator[Any]:
        """The policy with whole weights: itself, or a copy where they are cut into pieces.

        ``device`` and ``dtype`` are those of the copy; see `Replica.filled`.
        """
        self._activate(POLICY)
        if self.replica is None:
            yield self.policy
            return
        at_rest(self)
        with self.replica.filled(self.policy, device, dtype) as policy:
            yield policy


def hidden_states(
    backbone: nn.Module, sequences: Sequences, index: tuple[Tensor, Tensor]
) -> Tensor:
    """Last hidden states ``(N, H)`` at ``index``, see `Sequences.states`.

    Right padding needs no mask in a causal model.
    """
    inputs = padded(sequences.ids, shape_step(backbone, LENGTHS))
    trunk = sequences.trunk
    if trunk is not None:
        more = inputs["input_ids"].shape[1] - trunk.states.shape[1]
        trunk = trunk._replace(states=F.pad(trunk.states, (0, 0, 0, more)))
    with last_mlp_at(index, backbone), above(trunk, backbone):
        out = backbone(**inputs)
    return out.last_hidden_state[index]


def first_states(backbone: nn.Module, sequences: Sequences, layers: int) -> Tensor:
    """States after the first layers, ``(B, L, H)``."""
    inputs = padded(sequences.ids, shape_step(backbone, LENGTHS))
    return trunk_states(backbone, layers, **inputs)[:, : sequences.ids.shape[1]]


def padded(ids: Tensor, step: int) -> dict[str, Any]:
    """Inputs of a backbone: token ids ``(B, L)`` padded to a multiple of ``step``."""
    ids = F.pad(ids, (0, -ids.shape[1] % step))
    position = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    return {"input_ids": ids, "position_ids": position, "use_cache": False}


def shape_step(module: nn.Module, step: int) -> int:
    """``step`` where sizes of matrix products are to be rounded up to it, elsewhere 1.

    On a CPU every new size of a product in bfloat16 is compiled and kept (oneDNN): with sizes as
    they come, three times the time and a gigabyte.
    """
    weight = next(module.parameters())
    half = weight.dtype == torch.bfloat16 or torch.is_autocast_enabled(weight.device.type)
    return step if half and weight.device.type == "cpu" else 1


@contextmanager
def last_mlp_at(index: tuple[Tensor, Tensor], backbone: nn.Module) -> Iterator[None]:
    """Let the last layer's MLP leave out all states but those of ``index``, (row, column) each
    ``(N,)``: nobody reads what it would add to the others.

    A mixture of experts is left alone, and so is a layer that is run again for its gradients.
    """
    _, layers = decoder_layers(backbone)
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    again = getattr(layers[-1], "gradient_checkpointing", False) if layers else False
    if mlp is None or again or not _is_plain(mlp):
        yield
        return
    forward, step = mlp.forward, shape_step(mlp, ROWS)

    def some(hidden: Tensor) -> Tensor:
        """``(B, L, H)`` to ``(B, L, H)``, 0 where it was left out."""
        states = hidden[index]  # (N, H)
        n = len(states)
        added = forward(F.pad(states, (0, 0, 0, -n % step)))[:n].to(hidden.dtype)
        return torch.zeros_like(hidden).index_put(index, added)

    with replaced([mlp], some):
        yield


def _is_plain(mlp: nn.Module) -> bool:
    """Whether it maps each state by itself, from one argument; nobody has put himself before it."""
    alone = len(inspect.signature(mlp.forward).parameters) == 1
    return alone and not hasattr(mlp, "experts") and "forward" not in vars(mlp)


def policy_stats(
    lm: PreTrainedModel, sequences: Sequences, temperature: float, with_entropy: bool
) -> TokenStats:
    """Statistics of the completion tokens under a causal language model, ``(N,)``."""
    row, column = sequences.states()
    hidden = hidden_states(lm.base_model, sequences, (row, column))  # (N, H)
    targets = sequences.ids[row, column + 1]  # (N,)
    return token_stats(Head.of(lm), hidden, targets, temperature, with_entropy=with_entropy)


def write_policy(folder: Path, policy: Any, tokenizer: Any) -> None:
    """The policy alone in Hugging Face layout: all weights, or its adapter without the others."""
    checkpoint_files.write_model(folder, policy, tokenizer)
    for other in (VALUE, REWARD):
        shutil.rmtree(folder / other, ignore_errors=True)


def disable_dropout(model: nn.Module) -> None:
    """No dropout and no noise anywhere: otherwise old and new log-probabilities of the same weights
    differ. The model's own config, which is saved, keeps its numbers.
    """
    quiet: dict[int, Any] = {}  # configs that layers read while they compute
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _noises(module):
            setattr(module, name, 0.0)
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and not isinstance(module, PreTrainedModel):
            if id(config) not in quiet:
                quiet[id(config)] = copy.deepcopy(config) if _noises(config) else config
                for name in _noises(config):
                    setattr(quiet[id(config)], name, 0.0)
            module.config = quiet[id(config)]


def _noises(holder: Any) -> list[str]:
    """Attributes that are a rate of dropout or a size of noise, above 0."""
    return [
        name
        for name, value in vars(holder).items()
        if ("drop" in name or "jitter" in name) and isinstance(value, float) and value
    ]
