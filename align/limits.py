"""Numbers of a recipe: between which bounds each makes sense."""

from collections.abc import Callable
from typing import Any

from align.errors import ConfigError

COUNTS = (
    *("lora_r", "lora_layers", "dataset_limit", "max_length", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "logging_steps", "save_steps", "center_max_new_tokens"),
    *("total_episodes", "max_completion_length", "per_device_rollout_batch_size"),
    *("num_ppo_epochs", "num_mini_batches", "kl_horizon", "eval_prompts", "limit", "batch_size"),
)
POSITIVE = (
    *("temperature", "importance_cap", "kl_target", "kl_budget", "approx_kl_limit"),
    *("score_clip", "cliprange", "cliprange_value", "max_grad_norm"),
)
NOT_NEGATIVE = (
    *("warmup_steps", "weight_decay", "guard_loss_spike", "center_samples"),
    *("kl_coef", "vf_coef", "ptx_coef", "missing_eos_penalty", "eval_steps"),
    *("critic_warmup_rollouts", "reward_retries", "num_fewshot"),
)
MILLION = ("lora_alpha", "num_train_epochs", "reward_timeout", "vllm_timeout")
RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    ((*COUNTS, *POSITIVE), lambda v: v > 0, "above 0"),
    (NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
    (("learning_rate", "value_learning_rate"), lambda v: 0 < v <= 1, "above 0 and at most 1"),
    (MILLION, lambda v: 0 < v <= 1e6, "above 0 and at most 1000000"),
    (("eval_fraction", "invalid_fraction", "lora_dropout"), lambda v: 0 <= v < 1, "in [0, 1)"),
    (("gamma", "lam"), lambda v: 0 <= v <= 1, "in [0, 1]"),
    (("ema_decay",), lambda v: 0 < v < 1, "between 0 and 1"),
    (("dual_clip",), lambda v: v > 1, "above 1"),
    (("max_steps",), lambda v: v == -1 or v > 0, "above 0, or -1 for as many as num_train_epochs"),
    (("seed",), lambda v: 0 <= v < 2**32, "in [0, 4294967296)"),
)
"""Fields, what their values must fulfil, and how that is said."""

LARGEST = 1e9  # float32 holds it, squared and summed up
WEIGHTS = ("datasets", "ptx_datasets")
MOST_COPIES = 1000  # of a data card's records


def check_ranges(config: Any) -> None:
    """Every number of a stage, and the weights of its data.

    Raises:
        ConfigError: naming the field.
    """
    numbers = {n: v for n, v in vars(config).items() if isinstance(v, int | float)}
    for names, right, words in RANGES:
        for name in names:
            if name in numbers and not right(numbers[name]):
                raise ConfigError(f"{name} is {numbers[name]}; it must be {words}")
    for name, value in numbers.items():
        if abs(value) > LARGEST and name != "seed":
            raise ConfigError(f"{name} is {value}; it must not exceed {LARGEST:g} in size")
    for name in WEIGHTS:
        for key, weight in (getattr(config, name, None) or {}).items():
            if not 0 < weight <= MOST_COPIES:
                raise ConfigError(
                    f"{name} has the weight {weight} for {key}; it must be above 0 and at most "
                    f"{MOST_COPIES} (1: all once, 2: all twice)"
                )
