"""From a config to networks and rewards."""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from align import checkpoint
from align.checkpoint.load import quiet_peft
from align.config import PPOStage
from align.errors import CheckpointError, ConfigError
from align.ppo.models import POLICY, VALUE, Networks, Reference, causal_lm, disable_dropout
from align.ppo.rewards import Rewards, Scorer, function_scorer, url_scorer


class Built(NamedTuple):
    """What `PPOTrainer` trains and what it compares with."""

    networks: Networks
    reference: Reference


# ---------------------------------------------------------------- rewards


def build_rewards(config: PPOStage) -> Rewards:
    """The rewards that a config names: functions first, for their mistakes cost nothing.

    Raises:
        ConfigError: no such function.
        CheckpointError: no reward model there, or one that is blind to EOS.
    """
    scorers = function_scorers(config.reward_functions, config.reward_timeout)
    if config.reward_url:
        remote = url_scorer(config.reward_url, config.reward_timeout, config.reward_retries)
        scorers["reward_url"] = (config.reward_url_weight, remote)
    if config.reward_model:
        scorer = model_scorer(config.reward_model, config)
        scorers["reward_model"] = (config.reward_model_weight, scorer)
    return Rewards(scorers)


def build_gold(config: PPOStage) -> Rewards | None:
    """The second scorer, which judges held-out completions and is never optimised.

    Raises:
        ConfigError, CheckpointError: as `build_rewards`.
    """
    scorers = function_scorers(config.gold_functions, config.reward_timeout)
    if config.gold_reward_model:
        scorers["gold_reward_model"] = (1.0, model_scorer(config.gold_reward_model, config))
    return Rewards(scorers) if scorers else None


def function_scorers(
    functions: dict[str, float] | None, timeout: float
) -> dict[str, tuple[float, Scorer]]:
    """Name -> weight and scorer of Python functions."""
    return {
        spec: (weight, function_scorer(spec, timeout)) for spec, weight in (functions or {}).items()
    }


def model_scorer(name: str, config: PPOStage) -> Scorer:
    """A reward model, which reads texts with its own tokenizer and template."""
    from align.scoring import RewardScorer

    scorer = RewardScorer.load(name, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    return lambda records, completions, ended: scorer(
        [record["prompt"] for record in records], completions, ended
    )


def reward_lineage(config: PPOStage) -> dict[str, Any]:
    """What lineage.json says of the rewards: path and hashes of models, the others by name."""
    models = {"reward_model": config.reward_model, "gold_reward_model": config.gold_reward_model}
    found = {k: checkpoint.lineage.parent_of(m) if m else None for k, m in models.items()}
    return {
        **found,
        "reward_functions": config.reward_functions or {},
        "reward_url": config.reward_url,
        "gold_functions": config.gold_functions or {},
    }


# ---------------------------------------------------------------- networks


def build_networks(config: PPOStage, lm: PreTrainedModel, tokenizer: Any) -> Built:
    """Policy, value model and reference from the SFT model.

    Full fine-tuning: the value model starts from ``value_model``, else from the reward model where
    shapes and tokenizer fit, else from the policy's backbone; the reference is a copy. LoRA: all
    three share the backbone, and the reference is the backbone without adapters.

    Raises:
        CheckpointError: value_model can't read the policy's tokens.
    """
    if config.use_peft:
        policy = add_adapters(lm, checkpoint.lora_config(config, "CAUSAL_LM"), seed=config.seed)
        return assemble(policy, None, seed=config.seed)
    return assemble(lm, value_source(config, lm, tokenizer), seed=config.seed)


def value_source(config: PPOStage, lm: PreTrainedModel, tokenizer: Any) -> PreTrainedModel | None:
    """The reward-model-like checkpoint that the value model starts from; None: there is none."""
    name = config.value_model or config.reward_model
    if name is None:
        return None
    model, its_tokenizer = checkpoint.load_reward_model(
        name,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        attn_implementation=config.attn_implementation,
    )
    keys = ("model_type", "hidden_size", "num_hidden_layers")
    fits = all(getattr(lm.config, k, None) == getattr(model.config, k, None) for k in keys)
    if fits and its_tokenizer.get_vocab() == tokenizer.get_vocab():
        return model
    if config.value_model:
        raise CheckpointError(
            f"value_model {name} has another tokenizer or shape than {config.model_name_or_path}, "
            "so it can't read the policy's tokens; leave value_model out or give one that fits"
        )
    return None


def add_adapters(lm: PreTrainedModel, lora: Any, *, seed: int) -> nn.Module:
    """A PEFT model with the adapters ``default`` (policy) and ``value`` on one frozen backbone."""
    from peft import get_peft_model

    if lora.lora_dropout:
        raise ConfigError(
            f"lora_dropout is {lora.lora_dropout}; PPO compares probabilities of the same weights, "
            "which dropout would change: set it to 0"
        )
    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(lm, lora, adapter_name=POLICY)
        model.add_adapter(VALUE, copy.deepcopy(lora))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def assemble(policy: Any, source: PreTrainedModel | None, *, seed: int) -> Built:
    """Networks and reference around a policy.

    Args:
        policy: the SFT model, or a PEFT model with the adapters of `add_adapters`
        source: a sequence-classification model with one label whose backbone and head start the
            value model; None: the policy's backbone and a head ~ N(0, 1 / sqrt(H + 1))
        seed: of that head
    """
    lm = causal_lm(policy)
    head = value_head(lm, source, seed)
    if policy is not lm:
        networks, reference = Networks(policy, None, head), Reference(None)
    else:
        backbone = copy.deepcopy(lm.base_model) if source is None else source.base_model
        networks = Networks(policy, backbone, head)
        reference = Reference(copy.deepcopy(lm).eval().requires_grad_(False))
    networks.requires_grad_(True) if policy is lm else head.requires_grad_(True)
    disable_dropout(networks)
    return Built(networks, reference)


def value_head(lm: PreTrainedModel, source: Any, seed: int) -> nn.Linear:
    """Hidden states to values: the source's head with its offset, or a new one, in float32."""
    width = lm.config.get_text_config().hidden_size
    head = nn.Linear(width, 1, device=lm.device)
    nn.init.zeros_(head.bias)
    if source is None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(1, width, generator=generator) / math.sqrt(width + 1)
        head.weight.data.copy_(weight)
        return head
    head.weight.data.copy_(source.score.weight.data)
    if getattr(source.score, "bias", None) is not None:
        head.bias.data.copy_(source.score.bias.data)
    head.bias.data -= float(getattr(source.config, "score_offset", 0.0))
    return head
