"""recipes/README.md says what the code does: options with their defaults, metrics, the example."""

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from align import paths
from align.config import PPOStage
from align.data import load_mixture
from align.errors import ConfigError
from align.ppo.rewards import function_scorer

TEXT = (paths.RECIPES / "README.md").read_text("utf-8")
LOGGING = ("metrics", "learner", "trainer")
# Columns of samples.jsonl, and what lineage.json and a checkpoint say of a run.
NOT_LOGGED = {"completion", "tokens", "ended", "held_out", "stopped", "seed", "processes", "batch"}
NOT_LOGGED |= {"total_episodes", "prompts", "warnings"}
ROW = re.compile(r"^\| `(\w+)` \| (\S+) \| (.+?) \| (.*?) ?\|$", re.MULTILINE)


def default(field: Any) -> str:
    """As YAML writes it."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default if field.default is not MISSING else field.default_factory()
    return value if isinstance(value, str) else json.dumps(value)


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no example in {language}"
    return found[1]


def test_the_table_has_every_option_of_ppo_with_its_default() -> None:
    said = {name: value for name, value, *_ in ROW.findall(TEXT)}
    assert said == {f.name: default(f) for f in fields(PPOStage)}


def logged_names() -> set[str]:
    """The keys of metrics.jsonl, as the code writes them."""
    code = {n: (paths.PACKAGE / "ppo" / f"{n}.py").read_text("utf-8") for n in LOGGING}
    keys = {name for text in code.values() for name in re.findall(r'^ +"([\w/]+)": ', text, re.M)}
    phases = re.findall(r'Timer\(seconds, "(\w+)"\)', code["trainer"])
    return keys - NOT_LOGGED | {f"seconds/{phase}" for phase in [*phases, "all"]}


def test_the_table_names_every_metric_that_ppo_logs() -> None:
    assert {"score", "eval/kl", "clipfrac", "episodes", "seconds/learn"} <= logged_names()
    assert not [name for name in sorted(logged_names()) if f"`{name}`" not in TEXT]


def test_the_worked_reward_scores_what_the_worked_data_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sums.jsonl").write_text(block("jsonl"))
    Path("rewards.py").write_text(block("python"))
    records = load_mixture({"sums.jsonl": 1.0}, "prompt-only", seed=0).train
    completions = [f"I count. The answer is {r['answer']}." for r in records]
    score = function_scorer("rewards.py:right", timeout=10.0)
    assert score(records, completions, [True] * 3).tolist() == [1, 1, 1]
    assert score(records, ["The answer is 1.", "7", ""], [True] * 3).tolist() == [0, 0, 0]


def test_a_value_model_that_lora_would_not_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="value_model is m; with use_peft the value model is an"):
        PPOStage(
            model_name_or_path="m",
            datasets={"d": 1.0},
            output_dir="o",
            learning_rate=1e-5,
            per_device_train_batch_size=1,
            total_episodes=1,
            reward_model="r",
            value_model="m",
            use_peft=True,
        )
