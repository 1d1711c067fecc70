"""results.json: the contract with report, card, tax and compare. Strict JSON, never a NaN."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from align.errors import EvalError

SCHEMA = 1
DIGITS = 6  # what rounding of sums in another order can't reach


class Metric(NamedTuple):
    """A number with all that is needed to read it."""

    value: float | None
    stderr: float | None
    ci95: tuple[float, float] | None
    n: int
    higher_is_better: bool | None
    ideal: float | None
    meaning: str


def as_json(metric: Metric) -> dict[str, Any]:
    """A metric as results.json holds it."""
    return {
        "value": number(metric.value),
        "stderr": number(metric.stderr),
        "ci95": [number(end) for end in metric.ci95] if metric.ci95 is not None else None,
        "n": metric.n,
        "higher_is_better": metric.higher_is_better,
        "ideal": metric.ideal,
        "meaning": metric.meaning,
    }


def number(value: float | None, digits: int = DIGITS) -> float | None:
    """A float rounded for a file; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), digits) + 0.0


def clean(value: Any) -> Any:
    """Any nested value with its non-finite floats as null, so that JSON stays strict."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(clean(value), indent=2, ensure_ascii=False, allow_nan=False)
    _replace(path, text + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as strict JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(clean(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    _replace(path, "".join(lines))


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # what a full disk left of it


def evaluation_folder(path: Path) -> Path:
    """The folder with the results of a folder: itself, or runs/x/eval/sft for runs/x/sft."""
    beside = path.parent / "eval" / path.name
    here = (path / "results.json").is_file() or not (beside / "results.json").is_file()
    return path if here else beside


def read_results(path: Path) -> dict[str, Any]:
    """A results.json, or the one in a folder.

    Raises:
        EvalError: none there, not JSON, or of another schema.
    """
    file = evaluation_folder(path) / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise EvalError(f"no results.json at {file}; make one with `align eval --output {path}`")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvalError(f"{file} is not JSON: {error}") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise EvalError(
            f"{file} has schema {schema!r}, this version reads {SCHEMA}; evaluate the model again"
        )
    lacking = _lacking(results)
    if lacking:
        raise EvalError(f"{file} lacks {lacking}: it was cut or edited; evaluate the model again")
    return dict(results)


def _lacking(results: Mapping[str, Any]) -> str | None:
    """The first part of a results.json that should be there and is not."""
    parts = {key: results.get(key) for key in ("model", "tasks")}
    if isinstance(parts["tasks"], dict):
        for task, entry in parts["tasks"].items():
            inside = entry if isinstance(entry, dict) else {}
            parts[f"tasks.{task}.metrics"] = inside.get("metrics")
    return next((name for name, value in parts.items() if not isinstance(value, dict)), None)


# ---------------------------------------------------------------- a table for people


def table(results: Mapping[str, Any]) -> str:
    """The results as lines of text: ↑ or ↓ only where a direction is better."""
    lines = [f"model: {results['model'].get('name', '?')}"]
    for task, entry in results["tasks"].items():
        lines += ["", _headline(task, entry)]
        width = max((len(name) for name in entry["metrics"]), default=0)
        for judge, error in (entry.get("judges") or {}).items():
            lines.append(f"  {judge_line(judge, error)}")
        for name, metric in entry["metrics"].items():
            lines.append(f"  {name:<{width}}  {_figures(metric)}".rstrip())
        floors = entry.get("floors") or {}
        if floors:
            known = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in floors.items())
            lines.append(f"  floors: {known}")
        elif entry.get("floors_note"):
            lines.append(f"  floors: {entry['floors_note']}")
    for missing in results["missing"]:
        lines += ["", f"MISSING {missing['task']}: {missing['reason']}"]
    lines += ["", *(f"WARNING {text}" for text in results.get("warnings", ()))]
    return "\n".join(lines).rstrip()


def legend(several: Iterable[Mapping[str, Any]]) -> str:
    """One sentence for each metric of some results: what it says, and which way is good."""
    said: dict[tuple[str, str], list[str]] = {}
    for results in several:
        for task, entry in results["tasks"].items():
            for name, metric in entry["metrics"].items():
                tasks = said.setdefault((name, sentence(metric)), [])
                tasks += [task] if task not in tasks else []
    names = [name for name, _ in said]
    lines = ["What the numbers say; in brackets: where the true value is, with 95% confidence."]
    for (name, text), tasks in said.items():
        where = f" ({', '.join(tasks)})" if names.count(name) > 1 else ""
        lines.append(f"  {name}{where}: {text}")
    return "\n".join(lines) if said else ""


def sentence(metric: Mapping[str, Any]) -> str:
    """A metric's meaning and direction, in words."""
    wish = {True: "Higher is better", False: "Lower is better", None: "No direction is better"}
    better = wish[metric["higher_is_better"]]
    if metric["ideal"] is not None:
        better = f"The nearer to {metric['ideal']:g} the better"
    meaning = str(metric["meaning"]).strip().rstrip(".")
    return f"{meaning[:1].upper()}{meaning[1:]}. {better}."


def _headline(task: str, entry: Mapping[str, Any]) -> str:
    parts = [f"n = {entry['n']}", f"{entry['num_fewshot']}-shot"]
    if entry["unscored"]:
        parts.append(f"{entry['unscored']} unscored")
    if entry.get("truncated"):
        parts.append(f"{entry['truncated']} prompts cut to the model's context")
    if entry["contaminated"] is None:
        parts.append("contamination not measured")
    elif entry["contaminated"]:
        parts.append(f"{entry['contaminated']} items share text with the training data")
    return f"{task} ({', '.join(parts)})"


def _figures(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return f"{'not measured':<28} (n = {metric['n']})"
    value = f"{metric['value']:.3f}"
    if metric["ci95"] is not None:
        value += f" [{metric['ci95'][0]:.3f}, {metric['ci95'][1]:.3f}]"
    return f"{value:<22} {direction(metric):<10}"


def direction(metric: Mapping[str, Any]) -> str:
    """↑, ↓, "ideal 0.5" or nothing."""
    if metric["ideal"] is not None:
        return f"ideal {metric['ideal']:g}"
    return {True: "↑", False: "↓", None: ""}[metric["higher_is_better"]]


def judge_line(name: str, error: Mapping[str, Any]) -> str:
    """One judge's error in words."""
    if error["error"] is None:
        return f"{name} error: not measured ({error['reason']})"
    positives, negatives = error["false_positive_rate"], error["false_negative_rate"]
    return (
        f"{name} error: {_rate(error['error'])} of {error['error']['n']} texts ({error['data']}); "
        f"false positives {_rate(positives)}, false negatives {_rate(negatives)}"
    )


def _rate(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "not measured"
    between = f" [{rate['ci95'][0]:.3f}, {rate['ci95'][1]:.3f}]" if rate["ci95"] else ""
    return f"{rate['value']:.3f}{between}"
