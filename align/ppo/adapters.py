"""Adapters of policy, value model and reward model on one frozen backbone.

With LoRA and a reward model that is an adapter of the policy's own parent, one set of base weights
carries all four networks (Hydra-PPO, 2309.00754): the policy's adapter, the value adapter and head,
which start as the reward model's, the reward adapter and head, and the reference, which is the
backbone with its adapters off.
"""

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from align import checkpoint
from align.checkpoint import quiet_peft
from align.checkpoint.tokenizer_files import read_json
from align.config import PPOStage
from align.errors import ConfigError, is_main_process
from align.ppo.lora import fuse
from align.ppo.models import POLICY, REWARD, VALUE, Networks, Sequences
from align.scoring import RewardScorer

HEAD = "base_model.model.score.weight"


class RewardAdapter(NamedTuple):
    """A reward model that is an adapter of the policy's backbone."""

    path: str
    lora: Any
    """Its LoraConfig, for a causal backbone."""
    weights: dict[str, Tensor]
    """Of the adapter, under the names of its file; the head is apart."""
    head: Tensor
    """``(1, H)``"""
    offset: float
    """Subtracted from the head's output; see `align.scoring`."""
    tokenizer: Any
    pad_token_id: int | None


# ---------------------------------------------------------------- does it fit


def reward_adapter(config: PPOStage) -> RewardAdapter | None:
    """The reward model, where the policy's backbone can carry it; else None, and a line says why.

    Without LoRA nothing is shared, and nothing is said.
    """
    if not config.use_peft or config.reward_model is None:
        return None
    found = _read(config, config.reward_model)
    if isinstance(found, RewardAdapter):
        _say("one adapter more on the policy's backbone")
        return found
    _say(f"loaded beside the policy's backbone, for {found}")
    return None


def _say(how: str) -> None:
    if is_main_process():
        print(f"reward model: {how}", file=sys.stderr, flush=True)


def _read(config: PPOStage, path: str) -> RewardAdapter | str:
    """The adapter, or why the policy's backbone can't carry it."""
    from peft import LoraConfig, PeftConfig

    folder = checkpoint.local_folder(path)
    if folder is None or not (folder / "adapter_config.json").is_file():
        return "it is a whole model, no adapter"
    raw = read_json(folder / "adapter_config.json")
    base = (raw["base_model_name_or_path"], raw.get("revision"))
    if not same_weights(base, (config.model_name_or_path, config.model_revision)):
        return f"it is an adapter of {base[0]}, not of {config.model_name_or_path}"
    trained_in_4bit = checkpoint.read_lineage(folder).get("config", {}).get("load_in_4bit", False)
    if trained_in_4bit != config.load_in_4bit:
        return f"load_in_4bit was {trained_in_4bit} when it was trained"
    lora = PeftConfig.from_pretrained(folder)
    if not isinstance(lora, LoraConfig) or lora.bias != "none" or lora.use_dora:
        return "it is no plain LoRA adapter"
    weights = load_file(folder / "adapter_model.safetensors")
    head = weights.pop(HEAD, None)
    if head is None or not all("lora_" in name for name in weights):
        return "it holds other weights than LoRA's and a scalar head"
    own, policy_s = (
        checkpoint.load_tokenizer(name, revision=revision, need_template=False)
        for name, revision in ((path, None), (config.model_name_or_path, config.model_revision))
    )
    if own.get_vocab() != policy_s.get_vocab():
        return "its tokenizer has another vocabulary"
    facts = folder / "config.json"
    values = read_json(facts) if facts.is_file() else {}
    lora.task_type, lora.modules_to_save, lora.inference_mode = "CAUSAL_LM", None, False
    return RewardAdapter(
        path,
        lora,
        weights,
        head.float(),
        float(values.get("score_offset", 0.0)),
        checkpoint.load_tokenizer(path, trust_remote_code=config.trust_remote_code),
        checkpoint.inspect_checkpoint(folder).pad_token_id,
    )


def same_weights(one: tuple[str, str | None], other: tuple[str, str | None]) -> bool:
    """Whether two (path, revision) are one checkpoint: the same folder, or weights of equal hash
    on a base of equal hash.
    """
    folders = [checkpoint.local_folder(*name) for name in (one, other)]
    if None in folders:
        return one == other
    first, second = (Path(str(folder)).resolve() for folder in folders)
    if first == second:
        return True
    if checkpoint.weights_sha256(first) != checkpoint.weights_sha256(second):
        return False
    files = [folder / "adapter_config.json" for folder in (first, second)]
    if not any(file.is_file() for file in files):
        return True
    if not all(file.is_file() for file in files):
        return False
    bases = [read_json(file) for file in files]
    return same_weights(*((b["base_model_name_or_path"], b.get("revision")) for b in bases))


# ---------------------------------------------------------------- putting them there


def add_adapters(
    lm: PreTrainedModel, lora: Any, *, seed: int, reward: RewardAdapter | None = None
) -> nn.Module:
    """A PEFT model with the adapters of policy and value model, and the reward model's if given.

    The value adapter then has the rank and the targets of the reward adapter, and its weights.

    Raises:
        ConfigError: the adapter has dropout, or fits into no layer.
    """
    from peft import get_peft_model
    from peft.utils import set_peft_model_state_dict

    if lora.lora_dropout:
        raise ConfigError(
            f"lora_dropout is {lora.lora_dropout}; PPO compares probabilities of the same weights, "
            "which dropout would change: set it to 0"
        )
    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = get_peft_model(lm, lora, adapter_name=POLICY)
        except ValueError as error:
            raise ConfigError(
                f"peft can't put adapters into {type(lm).__name__} ({error}); correct "
                "lora_target_modules, or leave it out for all linear layers"
            ) from error
        model.add_adapter(VALUE, copy.deepcopy(reward.lora if reward else lora))
        if reward:
            model.add_adapter(REWARD, copy.deepcopy(reward.lora))
            for name in (VALUE, REWARD):
                found = set_peft_model_state_dict(model, reward.weights, adapter_name=name)
                assert not found.unexpected_keys, found.unexpected_keys
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and f".{REWARD}." not in name)
    fuse(model)
    return model


class SharedScorer:
    """The reward model as a scorer that has no backbone of its own.

    Made before the networks are; `attach` gives it theirs.
    """

    def __init__(self, adapter: RewardAdapter, rows: int):
        self.adapter, self.rows = adapter, rows
        self.scorer: RewardScorer | None = None

    def attach(self, networks: Networks) -> None:
        """Score with these networks from now on.

        Raises:
            CheckpointError: the reward model is blind to EOS.
        """
        adapter = self.adapter
        model = _Model(networks, adapter)
        RewardScorer(model, adapter.tokenizer).check_eos(adapter.path)
        # One of its own for the run: it copies its networks at its first score, which comes when
        # accelerate has prepared them. Rows are given so that every process makes equally many
        # forward passes, which sharded weights need.
        self.scorer = RewardScorer(model, adapter.tokenizer, rows=self.rows)

    def __call__(
        self, records: Sequence[dict[str, Any]], completions: Sequence[str], ended: Sequence[bool]
    ) -> Tensor:
        """Scores (B,) of completions; ``ended``: False where the length limit cut."""
        assert self.scorer is not None, "build_networks attaches it"
        return self.scorer([record["prompt"] for record in records], completions, ended)


class _Model(nn.Module):
    """What `RewardScorer` asks of a model, answered by the reward adapter of networks."""

    def __init__(self, networks: Networks, adapter: RewardAdapter):
        super().__init__()
        self.networks = networks
        self.config = copy.deepcopy(networks.policy.get_base_model().config)
        self.config.get_text_config().pad_token_id = adapter.pad_token_id
        self.config.score_offset = adapter.offset

    @property
    def device(self) -> torch.device:
        return next(self.networks.parameters()).device

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        """The reward head's output at the last real token."""
        lengths = attention_mask.sum(1)
        rows = Sequences(input_ids, lengths, torch.ones_like(lengths))
        return SimpleNamespace(logits=self.networks("reward", rows).unsqueeze(1))  # (B, 1)
