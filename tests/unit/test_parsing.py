"""Recipes are parsed strictly: what is wrong, why, and what to do, in one line."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from align.config import SFTStage
from align.errors import ConfigError
from align.parsing import (
    build,
    find_recipe,
    help_text,
    load_recipe,
    overrides,
    parse,
    to_yaml,
)
from align.strict_yaml import read_yaml

MINIMAL = {
    "model_name_or_path": "m",
    "datasets": {"cards": 1.0},
    "output_dir": "out",
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 8,
}


def stage_file(tmp_path: Path, **changes: object) -> str:
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("learning_rat", "did you mean learning_rate?"),
        ("lr", "did you mean learning_rate?"),
        ("batch_size", "did you mean per_device_train_batch_size?"),
        ("kl_coef", "belongs to ppo"),
        ("zzz", "see --help-all"),
    ],
)
def test_an_unknown_key_is_refused_with_the_right_one(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build(SFTStage, {**MINIMAL, key: 1}, "sft.yaml")
    assert f"sft.yaml: {key} is not a field of the sft stage" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_length", "long", r"max_length is 'long' \(str\); it must be int"),
        ("max_length", True, r"max_length is True \(bool\); it must be int"),
        ("learning_rate", "fast", "it must be float"),
        ("bf16", "maybe", "it must be bool"),
        ("dtype", "float8", "float32 | bfloat16 | float16"),
        ("datasets", 3, "str: float pairs"),
        ("datasets", {}, "datasets is empty"),
        ("seed", None, "it must be int"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SFTStage, {**MINIMAL, key: value}, "sft.yaml")


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="lacks output_dir, learning_rate"):
        values = {k: v for k, v in MINIMAL.items() if k not in ("output_dir", "learning_rate")}
        build(SFTStage, values, "sft.yaml")


def test_yaml_numbers_that_yaml_reads_as_strings(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    text = yaml.safe_dump({k: v for k, v in MINIMAL.items() if k != "learning_rate"})
    path.write_text(text + "learning_rate: 1e-5\n", encoding="utf-8")
    assert parse(SFTStage, ["--config", str(path)]).learning_rate == 1e-5


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    args = ["--config", stage_file(tmp_path), "--learning-rate", "2e-4", "--resume", "--seed=7"]
    config = parse(SFTStage, [*args, "--report_to", "[wandb, tensorboard]", "--datasets", "mine"])
    assert (config.learning_rate, config.resume, config.seed) == (2e-4, True, 7)
    assert config.report_to == ["wandb", "tensorboard"]
    assert config.datasets == {"mine": 1.0}


def test_a_misspelled_flag_names_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max_step is not a field .* max_steps"):
        parse(SFTStage, ["--config", stage_file(tmp_path), "--max_step", "3"])


def test_a_word_without_dashes_is_refused() -> None:
    with pytest.raises(ConfigError, match="write --field value"):
        parse(SFTStage, ["quickstart"])


def test_a_config_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"no config file at nowhere\.yaml"):
        parse(SFTStage, ["--config", "nowhere.yaml"])


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n"])
def test_a_config_that_is_not_a_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        parse(SFTStage, ["--config", str(path)])


def test_an_unknown_recipe_and_an_unknown_stage() -> None:
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        find_recipe("quikstart")
    with pytest.raises(ConfigError, match="the recipe has the stages"):
        load_recipe("quickstart", {"dpo": {"seed": 1}})
    with pytest.raises(ConfigError, match=r"--set sft\.kl_coef is not a field"):
        load_recipe("quickstart", {"sft": {"kl_coef": 1}})


@given(
    learning_rate=st.floats(1e-8, 1.0),
    seed=st.integers(0, 2**31),
    limit=st.none() | st.integers(1, 10**6),
    name=st.text("abcdefghijkl_-./0123456789é", min_size=1, max_size=20),
)
def test_to_yaml_round_trips(learning_rate: float, seed: int, limit: int | None, name: str) -> None:
    values = {**MINIMAL, "learning_rate": learning_rate, "seed": seed, "dataset_limit": limit}
    config = build(SFTStage, {**values, "datasets": {name: 0.5}}, "x")
    assert build(SFTStage, yaml.safe_load(to_yaml(config)), "y") == config


def test_help_shows_ten_fields_first_and_all_on_request() -> None:
    short, full = help_text(SFTStage, False), help_text(SFTStage, True)
    assert short.count("\n  --") == len(SFTStage.first) + 1
    assert "--weight_decay" in full
    assert "--weight_decay" not in short


def test_set_reads_yaml_values() -> None:
    assert overrides(["ppo.kl_coef=1e-1", "sft.bf16=true", "ppo.seed=3"]) == {
        "ppo": {"kl_coef": "1e-1", "seed": 3},
        "sft": {"bf16": True},
    }
    with pytest.raises(ConfigError, match="write --set"):
        overrides(["seed=3"])


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("learning_rate: 1e-5\nseed: 1\nlearning_rate: 1e-3\n")
    with pytest.raises(ConfigError, match="'learning_rate' stands twice; delete one"):
        read_yaml(file)
    file.write_text("base: &base {seed: 1}\nother: {<<: *base, seed: 2}\n")
    assert read_yaml(file)["other"] == {"seed": 2}  # a merged key may be said again
