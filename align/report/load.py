"""The files of a run, read once: recipe, checkpoints, results, items, tax.

Everything else in this package works on what is returned here and touches no file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from align.errors import EvalError

ORDER = ("base", "sft", "reward", "ppo")
RESULTS_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage left behind; a part that isn't there is empty, never invented."""

    name: str
    lineage: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    results: dict[str, Any] | None = None
    items: dict[str, Path] = field(default_factory=dict)
    """Task -> its items/<task>.jsonl."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Held-out completions that PPO logged last (samples.jsonl)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder: ``runs/<name>/``."""

    folder: Path
    recipe: dict[str, Any]
    """recipe.yaml: the recipe's name, and the resolved config of each stage under ``stages``."""
    stages: dict[str, Stage]
    tax: dict[str, Any] | None
    reward_report: dict[str, Any] | None
    sweep: dict[str, Any] | None = None
    """eval/sweep.json: averages of two checkpoints."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Stage -> its resolved config."""
        return self.recipe.get("stages") or {}

    @property
    def policies(self) -> dict[str, dict[str, Any]]:
        """Stage -> results.json of the evaluated language models: all but the reward model."""
        return {s: r for s, r in self.results.items() if not s.startswith("reward")}

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Stage -> results.json of the stages that were evaluated, in the order of the chain."""
        return {s.name: s.results for s in self.stages.values() if s.results is not None}


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        EvalError: no such folder, nothing of a run in it, or a file in it that can't be read.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise EvalError(f"no run folder at {folder}; give a folder that `align run` wrote")
    trained = {p.parent.name for p in folder.glob("*/lineage.json")}
    evaluated = {p.parent.name for p in folder.glob("eval/*/results.json")}
    if not trained | evaluated:
        raise EvalError(
            f"{folder} holds neither <stage>/lineage.json nor eval/<stage>/results.json, "
            "so it is not a run; give a folder that `align run` wrote"
        )
    return Run(
        folder=folder,
        recipe=_read_recipe(folder / "recipe.yaml"),
        stages={name: _load_stage(folder, name) for name in in_order(trained | evaluated)},
        tax=read_json(folder / "tax.json"),
        reward_report=read_json(folder / "reward" / "reward_report.json"),
        sweep=read_json(folder / "eval" / "sweep.json"),
    )


def in_order(names: set[str]) -> list[str]:
    """Stage names as the chain has them; variants (``base_fewshot``) right after their stage."""

    def place(name: str) -> tuple[int, str]:
        ranks = [i for i, stage in enumerate(ORDER) if name.startswith(stage)]
        return (ranks[0] if ranks else len(ORDER), name)

    return sorted(names, key=place)


def _load_stage(folder: Path, name: str) -> Stage:
    evaluated = folder / "eval" / name
    return Stage(
        name=name,
        lineage=read_json(folder / name / "lineage.json") or {},
        curve=list(read_jsonl(folder / name / "metrics.jsonl")),
        results=read_results(evaluated / "results.json"),
        items={p.stem: p for p in sorted(evaluated.glob("items/*.jsonl"))},
        samples=_last_samples(folder / name / "samples.jsonl"),
    )


def _last_samples(path: Path) -> list[dict[str, Any]]:
    """The samples of the last rollout after which some were logged."""
    rows = list(read_jsonl(path))
    last = max((row.get("rollout", 0) for row in rows), default=0)
    return [row for row in rows if row.get("rollout", 0) == last]


def read_results(path: Path) -> dict[str, Any] | None:
    """A results.json, or None where there is none.

    Raises:
        EvalError: broken, or of another schema.
    """
    results = read_json(path)
    if results is not None and results.get("schema") != RESULTS_SCHEMA:
        raise EvalError(
            f"{path} has schema {results.get('schema')!r}, this version reads {RESULTS_SCHEMA}; "
            "evaluate again with this version"
        )
    return results


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no file.

    Raises:
        EvalError: not JSON, or not an object.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvalError(f"{path} is not valid JSON ({error}); delete it and run again") from error
    if not isinstance(value, dict):
        raise EvalError(f"{path} holds a {type(value).__name__}, not an object; run again")
    return value


def read_jsonl(path: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The first ``limit`` objects of a JSON-lines file; none where there is no file.

    Raises:
        EvalError: a line that is not JSON, with its number. A last line without its newline
            is what a killed run leaves behind and is passed over.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, limit), start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    return
                raise EvalError(f"{path}, line {number} is not valid JSON; run again") from error


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise EvalError(f"{path} is not valid YAML ({error}); run again") from error
    return recipe if isinstance(recipe, dict) else {}
