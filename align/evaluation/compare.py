"""Two results, paired item by item."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.errors import EvalError
from align.evaluation import items, results
from align.evaluation.embedded import read_jsonl
from align.evaluation.stats import holm, paired

P = "Chance of a difference this large if there were none, Holm-corrected over all rows."
Rows = dict[str, Mapping[str, Any]]


def compare(a: Path, b: Path) -> dict[str, Any]:
    """Differences b − a of every metric that is a mean of items, on the same items.

    Args:
        a: a results.json with its items/ beside it, their folder, or a checkpoint of a run.
        b: the same, of the other model.

    Raises:
        EvalError: not results, no common task, or other items (the message says what differs).
    """
    first, second = results.read_results(a), results.read_results(b)
    common = [task for task in first["tasks"] if task in second["tasks"]]
    if not common:
        raise EvalError(
            f"{a} and {b} have no task in common: {', '.join(first['tasks']) or 'none'} against "
            f"{', '.join(second['tasks']) or 'none'}"
        )
    tasks = {task: _task(task, a, b, first, second) for task in common}
    _correct(tasks)
    return {
        "schema": results.SCHEMA,
        "a": first["model"].get("name"),
        "b": second["model"].get("name"),
        "tasks": tasks,
        "only_in_a": sorted(set(first["tasks"]) - set(common)),
        "only_in_b": sorted(set(second["tasks"]) - set(common)),
    }


def _task(
    task: str, a: Path, b: Path, first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, Any]:
    """All metrics of one task."""
    one, two = first["tasks"][task], second["tasks"][task]
    for what in ("data_sha256", "version"):
        if one.get(what) != two.get(what):
            raise EvalError(
                f"{task}: {what} is {one.get(what)} in {a} and {two.get(what)} in {b}; items that "
                "differ can't be paired: evaluate both with the same task"
            )
    _check_judge(task, first, second)
    rows_a, rows_b = _rows(a, task), _rows(b, task)
    _check_same(task, rows_a, rows_b, a, b)
    shots = (one["num_fewshot"], two["num_fewshot"])
    found = {
        name: _metric(name, metric, rows_a, rows_b)
        for name, metric in one["metrics"].items()
        if any(name in row["scores"] for row in rows_a.values())
    }
    return {"num_fewshot": list(shots), "metrics": found}


def _rows(path: Path, task: str) -> Rows:
    """The item rows beside a results.json."""
    folder = results.evaluation_folder(path) if path.is_dir() else path.parent
    file = items.item_file(folder, task)
    if not file.is_file():
        raise EvalError(f"no item scores at {file}; evaluate again with --output {folder}")
    rows = read_jsonl(file)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not {"id", "cluster", "scores"} <= row.keys():
            raise EvalError(f"{file} line {number} is no scored item; evaluate again")
    return {row["id"]: row for row in rows}


def _check_judge(task: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuse toxicity that two classifiers measured."""
    if not any("toxicity" in judge for judge in first["tasks"][task].get("judges") or ()):
        return
    chosen = [(r.get("settings") or {}).get("toxicity_classifier") or {} for r in (first, second)]
    if chosen[0].get("sha256") != chosen[1].get("sha256"):
        names = " and ".join(str(c.get("name")) for c in chosen)
        raise EvalError(
            f"{task}: toxicity was measured by two classifiers, {names}; evaluate both with the "
            "same --toxicity-model"
        )


def _check_same(task: str, one: Rows, two: Rows, a: Path, b: Path) -> None:
    """Refuse other items."""
    only_a, only_b = sorted(set(one) - set(two)), sorted(set(two) - set(one))
    if only_a or only_b:
        raise EvalError(
            f"{task}: {a} has {len(one)} items and {b} {len(two)}; {len(only_a)} are only in the "
            f"first ({', '.join(only_a[:3])}) and {len(only_b)} only in the second "
            f"({', '.join(only_b[:3])}); evaluate both with the same --limit and --seed"
        )


def _metric(name: str, metric: Mapping[str, Any], one: Rows, two: Rows) -> dict[str, Any]:
    """The paired difference of one metric."""
    ids = [i for i, row in one.items() if name in row["scores"] and name in two[i]["scores"]]
    found = paired(
        [_number(two[i]["scores"][name]) for i in ids],
        [_number(one[i]["scores"][name]) for i in ids],
        [one[i]["cluster"] for i in ids],
    )
    return {
        "delta": results.number(found.delta),
        "stderr": results.number(found.stderr),
        "ci95": [results.number(x) for x in found.ci95] if found.ci95 is not None else None,
        "p": found.p,
        "n": found.n,
        "mde80": results.number(found.mde80),
        "higher_is_better": metric["higher_is_better"],
        "ideal": metric["ideal"],
        "meaning": metric["meaning"],
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _correct(tasks: Mapping[str, Any]) -> None:
    """Add Holm-corrected p-values over everything that was compared."""
    metrics = [m for task in tasks.values() for m in task["metrics"].values()]
    for metric, p in zip(metrics, holm([m["p"] for m in metrics]), strict=True):
        metric["p"], metric["p_holm"] = results.number(metric["p"]), results.number(p)


def table(compared: Mapping[str, Any]) -> str:
    """The comparison as lines of text."""
    lines = [f"b − a, a = {compared['a']}, b = {compared['b']}"]
    for task, entry in compared["tasks"].items():
        lines += ["", task]
        width = max((len(name) for name in entry["metrics"]), default=0)
        for name, metric in entry["metrics"].items():
            lines.append(f"  {name:<{width}}  {_figures(metric)}")
    for side in ("a", "b"):
        if compared[f"only_in_{side}"]:
            lines.append(f"only in {side}: {', '.join(compared[f'only_in_{side}'])}")
    lines += ["", results.legend([compared])]
    lines.append(f"  p: {P}")
    return "\n".join(lines)


def _figures(metric: Mapping[str, Any]) -> str:
    if metric["delta"] is None:
        return f"not measured (n = {metric['n']})"
    text = f"{metric['delta']:+.3f}"
    if metric["ci95"] is not None:
        text += f" [{metric['ci95'][0]:+.3f}, {metric['ci95'][1]:+.3f}]"
    if metric["p_holm"] is not None:
        text += f"  p {metric['p_holm']:.3f}"
    return f"{text}  n = {metric['n']}  {results.direction(metric)}".rstrip()
