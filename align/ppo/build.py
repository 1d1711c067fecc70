"""From a config to networks and rewards."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align import checkpoint
from align.config import PPOStage
from align.errors import CheckpointError
from align.ppo.adapters import RewardAdapter, SharedScorer, add_adapters, reward_adapter
from align.ppo.models import Networks, causal_lm, disable_dropout
from align.ppo.rewards import Rewards, Scorer, function_scorer, url_scorer

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
        shared = reward_adapter(config)
        rows = config.per_device_train_batch_size
        scorer = SharedScorer(shared, rows) if shared else model_scorer(config.reward_model, config)
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


def build_networks(
    config: PPOStage, lm: PreTrainedModel, tokenizer: Any, reward: Rewards | None = None
) -> Networks:
    """Policy, value model and reference from the SFT model.

    Full fine-tuning: the value model starts from ``value_model``, else from the reward model where
    shapes and tokenizer fit, else from the policy's backbone; the reference is a copy. LoRA: all
    three share the backbone, and the reference is the backbone without adapters; a reward model
    that is an adapter of it joins them, and the value adapter and head start as its.

    Args:
        config: of the stage
        lm: the SFT model, its own adapter merged
        tokenizer: its tokenizer
        reward: the rewards of `build_rewards`; a shared reward model gets its networks here

    Raises:
        CheckpointError: value_model can't read the policy's tokens.
        ConfigError: a name in lora_target_modules stands for no linear layer.
    """
    if not config.use_peft:
        return assemble(lm, value_source(config, lm, tokenizer), seed=config.seed)
    scorers = reward.scorers.values() if reward else []
    shared = next((s for _, s in scorers if isinstance(s, SharedScorer)), None)
    adapter = shared.adapter if shared else None
    lora = checkpoint.lora_config(config, "CAUSAL_LM", lm)
    policy = add_adapters(lm, lora, seed=config.seed, reward=adapter)
    networks = assemble(policy, None, seed=config.seed, reward=adapter)
    if shared:
        shared.attach(networks)
    return networks


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


def assemble(
    policy: Any, source: PreTrainedModel | None, *, seed: int, reward: RewardAdapter | None = None
) -> Networks:
    """Networks around a policy.

    Args:
        policy: the SFT model, or a PEFT model with the adapters of `add_adapters`
        source: a sequence-classification model with one label whose backbone and head start the
            value model; None: the policy's backbone and a head ~ N(0, 1 / sqrt(H + 1))
        seed: of that head
        reward: the reward model on the policy's backbone, whose head starts the value head
    """
    lm = causal_lm(policy)
    if policy is not lm:
        head = value_head(lm, seed, reward and reward.head, reward.offset if reward else 0.0)
        networks = Networks(policy, None, head)
        if reward:
            networks.reward_head = value_head(lm, seed, reward.head, 0.0).requires_grad_(False)
    else:
        weight = None if source is None else source.score.weight
        offset = float(getattr(source and source.config, "score_offset", 0.0))
        head = value_head(lm, seed, weight, offset, getattr(source and source.score, "bias", None))
        backbone = copy.deepcopy(lm.base_model) if source is None else source.base_model
        reference = copy.deepcopy(lm)
        networks = Networks(policy, backbone, head)
        networks.requires_grad_(True)
        networks.reference = reference.requires_grad_(False)
    disable_dropout(networks)
    return networks


def value_head(
    lm: PreTrainedModel,
    seed: int,
    weight: Tensor | None = None,
    offset: float = 0.0,
    bias: Tensor | None = None,
) -> nn.Linear:
    """Hidden states to values in float32: a reward model's head less its offset, or a new one."""
    width = lm.get_output_embeddings().weight.shape[1]  # not hidden_size: OPT may project
    head = nn.Linear(width, 1, device=lm.device)
    nn.init.zeros_(head.bias)
    if weight is None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(1, width, generator=generator) / math.sqrt(width + 1)
    head.weight.data.copy_(weight.data)
    if bias is not None:
        head.bias.data.copy_(bias.data)
    head.bias.data -= offset
    return head
