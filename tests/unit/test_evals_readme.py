"""evals/README.md says what the code does: the tasks, a task of one's own, a result's fields."""

import re
from pathlib import Path
from typing import Any

import evaluation_helpers

from align import paths
from align.data.cards import card_names, read_card
from align.evaluation import suites
from align.evaluation.run import evaluate
from align.strict_yaml import strict_yaml

TEXT = (paths.EVALS / "README.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \| (↑|↓|ideal [\d.]+) \|", re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def task_configs() -> dict[str, Any]:
    files = suites.task_files().items()
    return {name: read_task(path) for name, path in files}


def read_task(path: Path) -> dict[str, Any]:
    """A task file laid over the one that it includes."""
    config = strict_yaml(path.read_text("utf-8"), functions=True)
    included = config.pop("include", None)
    return {**(read_task(path.parent / included) if included else {}), **config}


def test_every_task_is_listed_with_its_main_metric_and_direction() -> None:
    configs = task_configs()
    said = {task: (metric, better) for task, metric, better in ROW.findall(TEXT)}
    assert {t: m for t, (m, _) in said.items()} == {
        t: c["metadata"]["main"] for t, c in configs.items()
    }
    for task, (main, better) in said.items():
        spec = next((m for m in configs[task]["metric_list"] if m["metric"] == main), None)
        if spec:  # else the task's scorer makes it
            up = spec["higher_is_better"]
            true = {True: "↑", False: "↓"}.get(up) or f"ideal {spec['ideal']:g}"
            assert better == true, task


def test_every_task_names_a_card_that_is_there() -> None:
    cards = {c["metadata"].get("card") for c in task_configs().values()} - {None}
    assert cards <= set(card_names())


def test_the_worked_task_runs_as_it_is_printed(tmp_path: Path) -> None:
    task, card = blocks("yaml")
    (items,) = blocks("jsonl")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "capitals.yaml").write_text(task)
    (mine / "items.jsonl").write_text(items)
    (mine / "fewshot.jsonl").write_text(items.splitlines(keepends=True)[-1])
    model = evaluation_helpers.save(tmp_path / "model")
    found = evaluate(model, [str(mine / "capitals.yaml")], output=tmp_path / "out", limit=4)
    entry = found["tasks"]["capitals"]
    assert entry["n"] == 4 and entry["unscored"] == 0 and entry["main"] == "acc"
    named = set(re.findall(r"`\.?(\w+)(?:\.<metric>)?`", TEXT))
    assert {*entry, *entry["metrics"]["acc"], *found} - {"tasks"} <= named | {"version", "metrics"}

    (mine / "capitals.md").write_text(card.replace("/data/mine/items.jsonl", "items.jsonl"))
    assert read_card(mine / "capitals.md").tasks == ["capitals"]
