"""Completions from a policy: one function, behind which another engine can stand.

What it does differently from ``model.generate``: keys and values live in a slab that is allocated
once, rows that ended leave the batch while the others go on, and every token is drawn with a random
number that belongs to its row and position. So a completion depends on the weights, its prompt and
its own random numbers, and on nothing else: not on padding, on its neighbours in the batch, on the
number of processes or on the global random state.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from align.ppo.attention import NAME as SDPA_FLOAT32
from align.ppo.control import stream_seed
from align.ppo.models import LENGTHS, Head, causal_lm, last_mlp_at, shape_step

COMPACT_AT = 0.85  # live share of the batch at which ended rows are dropped from the slab
GPU_CHECK = 16  # tokens between two looks at who has ended; each look waits for the GPU


class Completions(NamedTuple):
    """Generated tokens, the stop token included.

    Attributes:
        ids: ``(B, T)``, PAD after the end
        mask: ``(B, T)``, True on a generated token
        ended: ``(B,)``, True where a stop token came, False where the length limit cut
        logprobs: ``(B, T)``, of another engine that sampled; None: the policy itself did
    """

    ids: Tensor
    mask: Tensor
    ended: Tensor
    logprobs: Tensor | None = None


class _Slab(DynamicLayer):
    """Keys and values of one layer: ``(B, heads, capacity, width)``, of which `used` are filled.

    They are kept in ``kept_as`` where it is given, so that attention need not cast all of them for
    every token.
    """

    def __init__(self, capacity: int, kept_as: torch.dtype | None = None):
        super().__init__()
        self.keys: Any = None
        self.values: Any = None
        self.capacity, self.used, self.kept_as = capacity, 0, kept_as

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = self.kept_as or key_states.dtype, key_states.device
        rows, heads, _, width = key_states.shape
        shape = (rows, heads, self.capacity)
        self.keys = key_states.new_empty(*shape, width, dtype=self.dtype)
        self.values = value_states.new_empty(*shape, value_states.shape[-1], dtype=self.dtype)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[-2]
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.used

    def keep(self, rows: Tensor) -> None:
        """Drop all but ``rows`` (N,)."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), *old.shape[1:])
            new[:, :, : self.used] = old[rows, :, : self.used]
            setattr(self, name, new)


def draws(seed: int, stream: int, rows: int, tokens: int) -> Tensor:
    """The random numbers of a rollout: ``(rows, tokens)`` in [0, 1), on the CPU, float64.

    Args:
        seed: of the run
        stream: number of the rollout; a rollout has the same numbers however it is shared out
        rows: completions over all processes
        tokens: the longest completion
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, stream, 1))
    return torch.rand(rows, tokens, generator=generator, dtype=torch.float64)


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Draw from ``softmax(logits / temperature)`` by inverting its distribution function.

    Args:
        logits: ``(B, V)``
        uniform: ``(B,)`` in [0, 1)
        temperature: above 0

    Returns:
        token ids, ``(B,)``
    """
    cumulative = torch.softmax(logits.float() / temperature, -1).cumsum(-1, dtype=torch.float64)
    target = uniform.unsqueeze(1) * cumulative[:, -1:]  # (B, 1)
    ids = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return ids.clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    uniforms: Tensor,
    *,
    eos_token_ids: list[int],
    pad_token_id: int,
    temperature: float = 1.0,
) -> Completions:
    """Sample one completion for each prompt, with no other truncation than the length limit.

    1. Read all prompts at once. 2. Draw a token for every live row. 3. Drop rows that ended.
    4. Feed the tokens back, until no row is live or the limit is reached.

    Args:
        model: a causal language model, possibly with a LoRA adapter, in eval mode
        prompt_ids: ``(B, P)``, padded on the left
        prompt_mask: ``(B, P)``, True on real tokens
        uniforms: ``(B, T)`` in [0, 1); T is the limit on the length
        eos_token_ids: tokens after which a completion ends
        pad_token_id: fills ``ids`` after the end
        temperature: above 0
    """
    lm = causal_lm(model)
    backbone, head = lm.base_model, Head.of(lm)
    device = prompt_ids.device
    (batch, width), limit = prompt_ids.shape, uniforms.shape[1]
    uniforms = uniforms.to(device)
    stops = torch.tensor(eos_token_ids, device=device)
    ids = torch.full((batch, limit), pad_token_id, device=device)  # (B, T)
    mask = torch.zeros((batch, limit), dtype=torch.bool, device=device)  # (B, T)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    kept_as = torch.float32 if lm.config._attn_implementation == SDPA_FLOAT32 else None
    count = lm.config.num_hidden_layers
    layers: list[Any] = [_Slab(width + limit, kept_as) for _ in range(count)]
    cache = Cache(layers=layers)
    four_d, step = _takes_bool_mask(lm), shape_step(lm, LENGTHS)

    # 1. all prompts at once
    seen = torch.cat((prompt_mask.bool(), mask.new_ones(batch, limit)), 1)  # (B, P + T)
    position = prompt_mask.long().cumsum(1) - 1  # (B, P)
    rows = torch.arange(batch, device=device)  # which row of the batch each live row is
    with last_mlp_at((rows, torch.full_like(rows, width - 1)), backbone):
        hidden = backbone(
            input_ids=prompt_ids,
            attention_mask=seen[:, :width],
            position_ids=position.clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    position = position[:, -1:]  # (B, 1)

    for t in range(limit):
        # 2. a token for every live row
        token = sample(head(hidden), uniforms[rows, t], temperature)  # (L,)
        running = ~ended[rows]
        ids[rows, t] = torch.where(running, token, pad_token_id)
        mask[rows, t] = running
        ended[rows] |= (token.unsqueeze(1) == stops).any(1)
        if t + 1 == limit:
            break
        # 3. drop rows that ended
        if device.type == "cpu" or t % GPU_CHECK == GPU_CHECK - 1:
            live = (~ended[rows]).nonzero().squeeze(1)
            if len(live) == 0:
                break
            if len(live) <= COMPACT_AT * len(rows):
                live = with_ended(live, ended[rows], step)
                rows, token, position, seen = rows[live], token[live], position[live], seen[live]
                for layer in layers:
                    layer.keep(live)
        # 4. feed the tokens back
        position = position + 1
        end = width + t + 1
        hidden = backbone(
            input_ids=token.unsqueeze(1),
            attention_mask=seen[:, None, None, :end] if four_d else seen[:, :end],
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    return Completions(ids, mask, ended)


def with_ended(live: Tensor, ended: Tensor, step: int) -> Tensor:
    """Rows that stay ``(L,)``: the live ones, filled up to a multiple of ``step`` by ended ones."""
    spare = ended.nonzero().squeeze(1)[: -len(live) % step]
    return torch.cat((live, spare))


def _takes_bool_mask(lm: PreTrainedModel) -> bool:
    """Whether a ready-made 4-D mask may be given, which saves building one for every token."""
    full = set(getattr(lm.config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    sliding = getattr(lm.config, "sliding_window", None)
    alibi = getattr(lm.config, "alibi", False)  # reads positions off the mask of a row
    sdpa = lm.config._attn_implementation in ("sdpa", SDPA_FLOAT32)
    return sdpa and full and not sliding and not alibi
