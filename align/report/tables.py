"""Results and tax as rows, and rows as text for a terminal or as Markdown.

One rule for all outputs: a number stands with its interval and n; an arrow stands only where a
direction is better; what has an ideal names it; what wasn't measured says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.report.load import load_run

NOT_MEASURED = "not measured"
MEAN = "mean of tasks"


class MetricRow(NamedTuple):
    """One metric over all evaluated checkpoints."""

    task: str
    metric: str
    num_fewshot: int | None
    direction: str
    """``↑``, ``↓``, ``ideal 0.5`` or empty."""
    meaning: str
    is_main: bool
    """The metric that stands for its task."""
    cells: dict[str, dict[str, Any] | None]
    """Stage -> the metric's entry in results.json, None where it wasn't measured."""


def metric_rows(results: Mapping[str, dict[str, Any]]) -> list[MetricRow]:
    """All metrics of several results.json as rows, in the order in which they are first met."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    shots: dict[tuple[str, str], int | None] = {}
    main: dict[str, str] = {}
    for stage, result in results.items():
        for task, entry in result["tasks"].items():
            main.setdefault(task, entry.get("main") or next(iter(entry["metrics"]), ""))
            for metric, value in entry["metrics"].items():
                found.setdefault((task, metric), {})[stage] = value
                shots.setdefault((task, metric), entry.get("num_fewshot"))
    tasks = list(dict.fromkeys(task for task, _ in found))
    rows = []
    for task, metric in sorted(found, key=lambda key: tasks.index(key[0])):
        cells = found[task, metric]
        any_cell = next(iter(cells.values()))
        rows.append(
            MetricRow(
                task,
                metric,
                shots[task, metric],
                direction(any_cell),
                next((str(c["meaning"]) for c in cells.values() if c.get("meaning")), ""),
                metric == main[task],
                {stage: cells.get(stage) for stage in results},
            )
        )
    return rows


def direction(metric: Mapping[str, Any]) -> str:
    """``↑`` or ``↓`` where a direction is better, ``ideal x`` where a value is, else nothing."""
    if metric.get("ideal") is not None:
        return f"ideal {number(metric['ideal'])}"
    return {True: "↑", False: "↓", None: ""}[metric.get("higher_is_better")]


def number(value: float | None, signed: bool = False) -> str:
    """A value with the digits that people read: 0.512, 48.9, 1,234."""
    if value is None:
        return "–"
    size = abs(value)
    if isinstance(value, int) or (size >= 10 and float(value).is_integer()):
        text = f"{int(value):,}"
    else:
        digits = 3 if size < 10 else 1 if size < 1000 else 0
        text = f"{value:,.{digits}f}"
        if digits == 3 and size == round(size, 1):
            text = f"{value:.1f}"
    return ("+" if signed and value > 0 else "") + text.replace("-", "−")


def interval(ci95: Sequence[float] | None, signed: bool = False) -> str:
    """``[0.450, 0.570]``, or the words for an interval that n < 2 can't give."""
    if ci95 is None or any(bound is None for bound in ci95):
        return "no interval"
    low, high = ci95
    return f"[{fixed(low, signed)}, {fixed(high, signed)}]"


def fixed(value: float, signed: bool = False) -> str:
    """Three digits after the point (one from 10 on), for numbers that stand in columns."""
    text = f"{value:.{3 if abs(value) < 10 else 1}f}"
    return ("+" if signed and value > 0 else "") + text.replace("-", "−")


def cell(metric: Mapping[str, Any] | None) -> str:
    """One measured value in a line: ``0.512 [0.450, 0.570] n=300``."""
    if metric is None:
        return NOT_MEASURED
    if metric.get("value") is None:
        return f"unscored (n={metric.get('n', 0)})"
    return f"{fixed(metric['value'])} {interval(metric.get('ci95'))} n={metric.get('n', '?')}"


def notes(results: Mapping[str, dict[str, Any]]) -> list[str]:
    """What a reader must know beside the numbers: missing, unscored and contaminated items."""
    lines, unknown = [], {}
    for stage, result in results.items():
        for missing in result.get("missing", []):
            lines.append(f"{stage}: {_missing(missing)} was not measured.")
        for task, entry in result["tasks"].items():
            if entry.get("unscored"):
                lines.append(
                    f"{stage}, {task}: {entry['unscored']} of {entry['n']} items have no score "
                    "and are left out of its numbers."
                )
            if entry.get("truncated"):
                lines.append(
                    f"{stage}, {task}: {entry['truncated']} prompts were cut to the context."
                )
            if entry.get("contaminated") is None:
                unknown[task] = True
            elif entry["contaminated"]:
                lines.append(
                    f"{stage}, {task}: {entry['contaminated']} of {entry['n']} items overlap "
                    "with the training data."
                )
    if unknown:
        lines.append(f"Overlap with the training data was {NOT_MEASURED} for {', '.join(unknown)}.")
    return lines


def _missing(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    reason = entry.get("reason") or entry.get("why")
    return f"{entry.get('task', entry)}" + (f" ({reason})" if reason else "")


# ---------------------------------------------------------------- tax


class TaxRow(NamedTuple):
    """One task of one pair of checkpoints; ``lost`` is positive where the capability fell."""

    task: str
    before: str
    after: str
    lost: float | None
    ci95: tuple[float, float] | None
    n: int
    p_holm: float | None
    mde80: float | None
    format_lost: float | None
    capability_lost: float | None
    verdict: str
    """``tax``, ``gain``, ``none`` or ``unclear``."""
    sentence: str


def tax_rows(tax: Mapping[str, Any] | None) -> list[TaxRow]:
    """The rows of a tax.json, in its order; none where there is no tax.json."""
    rows = []
    for pair, tasks in (tax or {}).get("pairs", {}).items():
        before, _, after = pair.partition("->")
        rows += [_tax_row(task, before, after, entry) for task, entry in tasks.items()]
        overall = (tax or {}).get("overall", {}).get(pair)
        if overall and len(tasks) > 1:
            rows.append(_tax_row(MEAN, before, after, overall))
    return rows


def _tax_row(task: str, before: str, after: str, entry: Mapping[str, Any]) -> TaxRow:
    ci95 = entry.get("ci95")
    row = TaxRow(
        task,
        before,
        after,
        _negated(entry.get("delta")),
        None if ci95 is None else (-ci95[1], -ci95[0]),
        entry.get("n", 0),
        entry.get("p_holm"),
        entry.get("mde80"),
        _negated(entry.get("format_delta")),
        _negated(entry.get("capability_delta")),
        entry.get("verdict", "unclear"),
        entry.get("sentence", ""),
    )
    return row if row.sentence else row._replace(sentence=_sentence(row))


def _negated(delta: float | None) -> float | None:
    return None if delta is None else 0.0 - delta


def _sentence(row: TaxRow) -> str:
    """The verdict in words, for a tax.json that has only the word."""
    if row.lost is None or row.ci95 is None:
        return f"{row.task}: can't tell, n={row.n} gives no interval."
    what = f"{row.task}, {row.after} against {row.before}"
    _, high = row.ci95
    measured = f"{fixed(row.lost, True)} {interval(row.ci95, True)}, n={row.n}"
    return {
        "tax": f"{what}: a tax, {measured} lost.",
        "gain": f"{what}: a gain, not a tax ({measured} lost).",
        "none": f"{what}: no tax larger than {fixed(max(high, 0.0))} ({measured}).",
    }.get(row.verdict, f"{what}: can't tell, the interval is too wide ({measured}).")


def tax_table(tax: Mapping[str, Any] | None) -> list[list[str]]:
    """Header and rows of the alignment tax; positive = lost."""
    table = [["task", "from → to", "lost (positive = worse)", "n", "p (Holm)", "verdict"]]
    for row in tax_rows(tax):
        lost = "unscored" if row.lost is None else fixed(row.lost, signed=True)
        table.append(
            [
                row.task,
                f"{row.before} → {row.after}",
                f"{lost} {interval(row.ci95, signed=True)}",
                str(row.n),
                NOT_MEASURED if row.p_holm is None else p_value(row.p_holm),
                row.verdict,
            ]
        )
    return table


def p_value(p: float) -> str:
    """A p value, never a false zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------- rendering


def run_table(folder: Path | str) -> str:
    """What `align run` prints at its end: each task's main metric, and the verdicts of the tax."""
    run = load_run(Path(folder))
    table = [["task", "metric", "better", *run.policies]]
    for row in metric_rows(run.policies):
        if row.is_main or row.metric.startswith(_stem(row, run.policies)):
            cells = ("" if c is None else short_cell(c) for c in row.cells.values())
            table.append([row.task, row.metric, row.direction, *cells])
    parts = [terminal(table)] if len(table) > 1 else []
    reward = [cell(row.cells["reward"]) for row in metric_rows(run.results) if _of_reward(row)]
    parts += [f"reward model, held-out accuracy: {reward[0]}"] if reward else []
    parts += ["\n".join(row.sentence for row in tax_rows(run.tax))] if run.tax else []
    return "\n\n".join(parts) or "nothing was evaluated in this run"


def _stem(row: MetricRow, results: Mapping[str, dict[str, Any]]) -> str:
    """``exact_match_`` where exact_match is the task's main metric: its parts are shown too."""
    entries = [r["tasks"][row.task] for r in results.values() if row.task in r["tasks"]]
    return f"{entries[0].get('main')}_"


def _of_reward(row: MetricRow) -> bool:
    return row.is_main and row.cells.get("reward") is not None


def short_cell(metric: Mapping[str, Any]) -> str:
    """A value and its interval, without n."""
    if metric.get("value") is None:
        return "unscored"
    return f"{fixed(metric['value'])} {interval(metric.get('ci95'))}"


def results_table(results: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """Header and rows: task, metric, which way is good, one column a stage."""
    table = [["task", "metric", "better", *results]]
    for row in metric_rows(results):
        shots = f" ({row.num_fewshot}-shot)" if row.num_fewshot else ""
        table.append(
            [row.task + shots, row.metric, row.direction, *(cell(c) for c in row.cells.values())]
        )
    return table


REPORT_MEANINGS = {
    "accuracy": "share of pairs in which chosen scores above rejected; higher is better",
    "calibration: ece": "mean gap between how sure it is and how often it is right; 0 is best",
    "length only": "what a judge reaches that looks at the length alone; accuracy must beat it",
    "mean margin": "mean score of chosen minus rejected",
    "overlong": "pairs that are longer than max_length and were left out",
    "sensitivity: eos mean abs": "how far a score moves without EOS; 0 would mean blind to the end",
    "sensitivity: padding max abs": "how far a score moves with 16 more PADs; should be 0",
    "sensitivity: batching max abs": "how far a score moves with its batch; should be 0",
}


def report_rows(report: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Name, value and meaning of all in a reward_report.json but its lists; nested names joined."""
    rows = []
    for key, value in report.items():
        name = prefix + (key if prefix.startswith("by ") else key.replace("_", " "))
        if isinstance(value, dict) and "value" in value:
            rule = f" (the {value['rule']} one)" if value.get("rule") else ""
            rows.append([name + rule, cell(value), REPORT_MEANINGS.get(name, "")])
        elif isinstance(value, dict):
            rows += report_rows(value, f"{name}: ")
        elif not isinstance(value, list):
            rows.append([name, measured(value), REPORT_MEANINGS.get(name, "")])
    return rows


def measured(value: Any) -> str:
    """A plain value; None was not measured."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, float) and 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return number(value) if isinstance(value, int | float) else str(value)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A header and rows as a Markdown table; ``|`` in a cell is escaped."""
    clean = [[" ".join(c.split()).replace("|", "\\|") for c in row] for row in table]
    rule = ["---"] * len(clean[0])
    return "\n".join("| " + " | ".join(row) + " |" for row in [clean[0], rule, *clean[1:]])


def terminal(table: Sequence[Sequence[str]]) -> str:
    """A header and rows as aligned columns; a repeated first cell is left blank."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines, before = [], ""
    for row in table:
        shown = ["" if row[0] == before else row[0], *row[1:]]
        before = row[0]
        lines.append("  ".join(c.ljust(w) for c, w in zip(shown, widths, strict=True)).rstrip())
    return "\n".join([lines[0], "  ".join("─" * w for w in widths), *lines[1:]])
