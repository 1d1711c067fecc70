"""Every number of a recipe has bounds, and a value outside is refused in one line."""

import typing
from dataclasses import fields
from typing import Any

import pytest

from align.config import STAGES, PPOStage, StageConfig
from align.errors import ConfigError
from align.limits import RANGES
from align.parsing import build

ANY = {"reward_model_weight", "reward_url_weight", "length_penalty", "entropy_coef"}
"""Of either sign, and any size."""
VALUES: dict[str, dict[str, Any]] = {
    "sft": {"per_device_train_batch_size": 4},
    "reward": {"per_device_train_batch_size": 4},
    "ppo": {"per_device_train_batch_size": 4, "reward_model": "r", "total_episodes": 8},
    "eval": {"suites": ["bias"]},
}


def made(stage: str, **changes: Any) -> Any:
    """A stage as `build` makes it from YAML."""
    training = {"model_name_or_path": "m", "datasets": "d", "output_dir": "o", "learning_rate": 1}
    values = {**({} if stage == "eval" else training), **VALUES[stage], **changes}
    return build(STAGES[stage], values, "x.yaml")


def numeric(cls: type) -> set[str]:
    hints = typing.get_type_hints(cls)
    kinds = {
        n: {h, *typing.get_args(h)} for n, h in hints.items() if typing.get_origin(h) is not dict
    }
    return {f.name for f in fields(cls) if kinds.get(f.name, set()) & {int, float}}


@pytest.mark.parametrize("stage", STAGES)
def test_every_number_has_bounds(stage):
    bounded = {name for names, _, _ in RANGES for name in names}
    assert numeric(STAGES[stage]) - bounded - ANY == set()
    assert len(numeric(StageConfig)) > 15, "they are found at all"


def test_every_bound_belongs_to_a_number_once():
    names = [name for names, _, _ in RANGES for name in names]
    assert sorted(names) == sorted(set(names))
    assert set(names) <= set.union(*map(numeric, STAGES.values()))


OUTSIDE = [
    ("sft", "learning_rate", [-1e-3, 0, 1e38], "above 0 and at most 1"),
    ("ppo", "value_learning_rate", [-1.0, 0.0, 1e38], "above 0 and at most 1"),
    ("ppo", "kl_coef", [-0.1], "0 or more"),
    ("ppo", "temperature", [-1, 0], "above 0"),
    ("ppo", "cliprange", [-0.2, 0], "above 0"),
    ("ppo", "gamma", [-0.1, 1.01], r"in \[0, 1\]"),
    ("ppo", "lam", [-0.1, 95], r"in \[0, 1\]"),
    ("ppo", "ema_decay", [0, 1], "between 0 and 1"),
    ("ppo", "dual_clip", [1, -3], "above 1"),
    ("ppo", "approx_kl_limit", [0, -1], "above 0"),
    ("ppo", "ptx_coef", [-1], "0 or more"),
    ("ppo", "reward_timeout", [0, -1, 1e300], "above 0 and at most 1000000"),
    ("sft", "lora_alpha", [0, 10**30], "above 0 and at most 1000000"),
    ("sft", "max_grad_norm", [0, -1], "above 0"),
    ("reward", "num_train_epochs", [0, 1e300], "above 0 and at most 1000000"),
    ("reward", "seed", [-1, 2**32], r"in \[0, 4294967296\)"),
    ("reward", "center_samples", [-1], "0 or more"),
    ("sft", "max_steps", [0, -2], "above 0, or -1"),
    ("eval", "limit", [0, -5], "above 0"),
    ("eval", "num_fewshot", [-1], "0 or more"),
    ("eval", "seed", [-1], r"in \[0, 4294967296\)"),
]


@pytest.mark.parametrize(
    ("stage", "field", "value", "words"),
    [(stage, field, value, words) for stage, field, bad, words in OUTSIDE for value in bad],
)
def test_a_number_out_of_its_bounds_is_refused(stage, field, value, words):
    with pytest.raises(ConfigError, match=rf"^{field} is .*; it must be {words}"):
        made(stage, **{field: value})


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_is_finite(stage, value):
    floats = [n for n in numeric(STAGES[stage]) if typing.get_type_hints(STAGES[stage])[n] is float]
    for name in floats:
        with pytest.raises(ConfigError, match=f"{name} is {value}; it must be a finite number"):
            made(stage, **{name: value})


def test_no_number_is_too_large_for_float32():
    for name in sorted(ANY | {"kl_coef", "cliprange", "score_clip", "entropy_coef"}):
        with pytest.raises(ConfigError, match=rf"{name} is -?1e\+300; it must not exceed 1e\+09"):
            made("ppo", **{name: -1e300 if name in ANY else 1e300})


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e300])
@pytest.mark.parametrize("name", ["datasets", "ptx_datasets"])
def test_weights_of_data(name, weight):
    with pytest.raises(ConfigError, match=f"{name} has the weight .* for d; it must be above 0"):
        made("ppo", ptx_coef=1.0, **{"ptx_datasets": "e", name: {"d": weight}})


def test_defaults_and_what_people_use_are_within():
    for stage in STAGES:
        made(stage)
    made("ppo", gamma=1, lam=0, kl_coef=0, vf_coef=0, entropy_coef=-0.01, length_penalty=-0.1)
    made("sft", warmup_steps=0.1, weight_decay=0, seed=2**32 - 1)
    assert isinstance(made("ppo", kl_target=None), PPOStage)
