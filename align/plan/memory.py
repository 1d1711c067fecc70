"""Bytes that a training stage holds, from its config and the shape of its model."""

from typing import Any

from align.plan.shape import LINEAR, Shape

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# 4-bit NormalFloat with double quantisation: 4 bits and 0.127 bits of constants a weight
# (Dettmers 2023, 2305.14314, section 3).
BYTES_4BIT = 4.127 / 8
PPO_CHUNK_LOGITS = 2**24  # align.ppo.models.CHUNK_LOGITS, without importing torch


def trainable(config: Any, shape: Shape) -> int:
    """Weights that are trained: all, or r·(inputs + outputs) a linear layer with LoRA.

    Hu 2021 (2106.09685), section 4.1: an adapter of rank r adds B (outputs, r) and A (r, inputs).
    """
    if not config.use_peft:
        return shape.parameters()
    chosen = config.lora_target_modules
    layers = shape.linear()
    names = LINEAR if chosen == "all-linear" else [n for n in chosen if n in layers]
    return trained_layers(config, shape) * sum(config.lora_r * sum(layers[n]) for n in names)


def trained_layers(config: Any, shape: Shape) -> int:
    """Layers that a backward pass goes through: those with an adapter, or all."""
    last = config.lora_layers if config.use_peft else None
    return shape.layers if last is None else min(last, shape.layers)


def memory(config: Any, shape: Shape) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes that stay, and bytes of each phase.

    Weights, gradients and AdamW's two moments have the type of the weights (Rajbhandari 2020,
    1910.02054, section 3.1 counts them for mixed precision). PPO holds policy and value model for
    training, reference and reward models to read; with LoRA they share one backbone. A reward model
    counts in full: one that is an adapter of the policy's parent joins it and needs less.
    """
    size = BYTES[config.dtype]
    weights = shape.parameters() * (BYTES_4BIT if config.load_in_4bit else size)
    learnt = trainable(config, shape) * size
    ppo = config.stage == "ppo"
    trained = 2 if ppo else 1  # PPO: policy and value model
    frozen = int(bool(config.reward_model)) + int(bool(config.gold_reward_model)) if ppo else 0
    copies = 1 if config.use_peft else trained + int(ppo)  # full PPO: a reference beside them
    parts = {
        "weights": weights * (copies + frozen) + (learnt * trained if config.use_peft else 0.0),
        "gradients": learnt * trained,
        "optimizer": 2 * learnt * trained,
    }
    phases = {
        "training step: activations and logits": activations(config, shape) + logits(config, shape)
    }
    if ppo:
        phases["rollout: KV cache"] = kv_cache(config, shape)
        if trained_layers(config, shape) < shape.layers:
            parts["trunk's states"] = trunk_states(config, shape)
    return parts, phases


def activations(config: Any, shape: Shape) -> float:
    """Bytes that the backward pass needs from the forward pass of one micro-batch.

    Counted as in Korthikanti 2022 (2205.05198), section 4, for a block with RMSNorm and a gated
    MLP: inputs and outputs of two norms (4h), query and attention output (2q), keys and values
    (2kv), residual (h), gate, up, activation and product (4i), a token. Memory-efficient kernels
    keep no (T, T) scores; eager attention keeps two of them a head of 64. With checkpointing only
    each block's input stays, and one block is recomputed at a time.
    """
    tokens = config.per_device_train_batch_size * config.max_length
    size = 2.0 if config.bf16 else BYTES[config.dtype]
    block = 5 * shape.hidden + 2 * shape.q_width + 2 * shape.kv_width + 4 * shape.intermediate
    if config.attn_implementation == "eager":
        block += 2 * config.max_length * max(1, shape.q_width // 64)
    if config.gradient_checkpointing:
        return size * tokens * (trained_layers(config, shape) * shape.hidden + block)
    return size * tokens * trained_layers(config, shape) * block


def logits(config: Any, shape: Shape) -> float:
    """Bytes of one micro-batch's logits, their float32 copy and their gradient.

    A reward model has none. PPO computes those of completion tokens only, a chunk at a time.
    """
    if config.stage == "reward":
        return 0.0
    length = config.max_completion_length if config.stage == "ppo" else config.max_length
    size = 2.0 if config.bf16 else BYTES[config.dtype]
    held = config.per_device_train_batch_size * length * shape.vocabulary
    if config.stage == "ppo":
        held = min(held, PPO_CHUNK_LOGITS)
    return held * (2 * size + 4)


def kv_cache(config: Any, shape: Shape) -> float:
    """Bytes of keys and values of one rollout batch: 2·layers·kv_width a token."""
    tokens = config.per_device_rollout_batch_size * config.max_length
    return 2 * shape.layers * shape.kv_width * tokens * BYTES[config.dtype]


def trunk_states(config: Any, shape: Shape) -> float:
    """Bytes of the states below the first adapter, which a PPO rollout holds: h a token."""
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    tokens = rows * config.num_mini_batches * config.max_length
    return shape.hidden * tokens * (2.0 if config.bf16 else BYTES[config.dtype])
