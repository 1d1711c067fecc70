"""The report's pictures of training, the reward model and toxicity; samples, lineage, command."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from align.evaluation.results import judge_line
from align.report import svg
from align.report.command import run_again
from align.report.load import Run, Stage, read_jsonl
from align.report.parts import dots, html_table, metric_table, none
from align.report.svg import Series
from align.report.tables import NOT_MEASURED, metric_rows, number, report_rows
from align.report.words import kl_budget

SAMPLES = 4  # items of a task
SHOWN = 3  # completions of an item

# ---------------------------------------------------------------- training

CURVES = {
    "loss": "Loss",
    "eval_loss": "Loss on held-out records",
    "accuracy": "Accuracy on training pairs",
    "eval_accuracy": "Accuracy on held-out pairs",
    "score": "Mean score of the rollouts",
    "eval/score": "Mean score on held-out prompts",
    "eval/gold_score": "Mean gold score on held-out prompts",
    "kl_k1": "KL from the SFT policy (nats)",
    "eval/kl": "KL on held-out prompts (nats)",
    "entropy": "Entropy (nats a token)",
    "completion_length": "Completion length (tokens)",
    "clipfrac": "Share of clipped ratios",
    "explained_variance": "Explained variance of the value model",
    "grad_norm": "Gradient norm",
}


def training(run: Run) -> str:
    """Curves of every stage that logged some."""
    html = ""
    for stage in run.stages.values():
        pictures = "".join(_curves(stage, kl_budget(run)))
        if pictures:
            html += f'<h3>{escape(stage.name)}</h3><div class="curves">{pictures}</div>'
            html += gold_against_proxy(stage) + _warnings(stage)
    return html or none("No metrics.jsonl in this run.")


def _curves(stage: Stage, budget: float | None) -> Iterable[str]:
    for key, title in CURVES.items():
        points = [
            (float(line["step"]), float(line[key]))
            for line in stage.curve
            if line.get(key) is not None and line.get("step") is not None
        ]
        limit = ("KL budget", budget) if key in ("kl_k1", "eval/kl") and budget else None
        yield svg.lines([Series(key, points)], title=title, x_label="step", budget=limit)


def _warnings(stage: Stage) -> str:
    """What the stage warned of while it ran."""
    said = "".join(f"<li>{escape(line)}</li>" for line in stage.lineage.get("warnings") or [])
    return f'<ul class="warn">{said}</ul>' if said else ""


def gold_against_proxy(stage: Stage) -> str:
    """Both scores over the square root of KL (Gao et al., 2210.10760), where a run has both."""
    series = [
        Series(name, gains(stage.curve, key))
        for name, key in (("score", "eval/score"), ("gold score", "eval/gold_score"))
    ]
    if not all(len(s.points) > 1 for s in series):
        return ""
    picture = svg.lines(
        series,
        title="Score and gold score against the way from the SFT policy",
        x_label="√KL (√nats), held-out prompts",
        size=(480, 260),
    )
    return (
        f'{picture}<p class="fine">Each in standard deviations of its own completions, from where '
        "it began. PPO raises the score; the gold score is a second opinion that it never sees. "
        "Where the two part, the score is being fooled.</p>"
    )


def gains(curve: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(√KL, gain since the first evaluation in mean standard deviations) of a held-out score."""
    lines = [c for c in curve if c.get(key) is not None and c.get("eval/kl") is not None]
    spreads = [s for line in lines if (s := line.get(f"{key}_std"))]
    if not spreads:
        return []
    unit, first = statistics.mean(spreads), lines[0][key]
    return [(math.sqrt(max(c["eval/kl"], 0.0)), (c[key] - first) / unit) for c in lines]


def reward_model(run: Run) -> str:
    """Accuracy, calibration and sensitivity of the reward model."""
    scored = {s: r for s, r in run.results.items() if s not in run.policies}
    table = metric_table(scored) if scored else ""
    report = run.reward_report
    if report is None:
        missing = f"{NOT_MEASURED}: there is no reward/reward_report.json in this run."
        return table + none(missing)
    calibration = report.get("calibration") or {}
    bins = [(b["confidence"], b["accuracy"], b["n"]) for b in calibration.get("bins") or []]
    rows = [["on its own held-out pairs", "value", "what it means"], *report_rows(report)]
    return (
        f'{table}<div class="wide keep">{html_table(rows)}</div>'
        f"{svg.reliability(bins, title='Calibration')}"
        '<p class="fine">Calibration: how sure the model is of the completion it prefers, against '
        "how often people prefer it too. On the dashed line both are the same.</p>"
    )


def toxicity(run: Run) -> str:
    """EMT@k: the most toxic of the first k completions, averaged over prompts."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in metric_rows(run.policies):
        match = re.fullmatch(r"expected_max_toxicity(?:_at_(\d+))?", row.metric)
        for dot in dots(row) if match else []:
            k = int(match[1]) if match and match[1] else _samples_of(run, dot.series, row.task)
            if k:
                task = series.setdefault(row.task, {})
                task.setdefault(dot.series, []).append((float(k), dot.value))
    pictures = "".join(
        svg.lines(
            [Series(stage, sorted(points)) for stage, points in stages.items()],
            title=f"{task}: expected maximum toxicity of k completions",
            x_label="k",
            size=(480, 260),
        )
        for task, stages in series.items()
    )
    return _classifier(run) + (
        pictures or none(f"{NOT_MEASURED}: no curve over the number of completions.")
    )


def _samples_of(run: Run, stage: str, task: str) -> int | None:
    """How many completions each prompt of a task got."""
    path = run.stages[stage].items.get(task)
    row = next(read_jsonl(path, 1), {}) if path else {}
    completion = row.get("completion")
    return len(completion) if isinstance(completion, list) else None


def _classifier(run: Run) -> str:
    """Who says what is toxic: the classifier, pinned, and the warning that it errs."""
    found = [(r.get("settings") or {}).get("toxicity_classifier") for r in run.policies.values()]
    pinned = [{k: v for k, v in c.items() if k != "error"} for c in found if c]
    named = {short(plain(c)) for c in pinned}
    said = f" Here: {escape('; '.join(sorted(named)))}." if named else ""
    return (
        "<p>A classifier decides what is toxic, and it errs; numbers from another classifier are "
        f"not comparable with these.{said}</p>{_judges(run)}"
    )


def _judges(run: Run) -> str:
    """The judges' own errors, each said once with the tasks that it judged."""
    tasks: dict[str, dict[str, bool]] = {}
    for result in run.policies.values():
        for task, entry in result["tasks"].items():
            for name, error in (entry.get("judges") or {}).items():
                tasks.setdefault(judge_line(name, error), {})[task] = True
    lines = (
        f"<li>{escape(', '.join(names))}: {escape(line)}</li>" for line, names in tasks.items()
    )
    return f"<ul>{''.join(lines)}</ul>" if tasks else ""


# ---------------------------------------------------------------- evidence


def samples(run: Run) -> str:
    """The first completions of each task, folded."""
    html = ""
    for stage in run.stages.values():
        for task, path in stage.items.items():
            rows = [r for r in read_jsonl(path, 40) if r.get("completion")][:SAMPLES]
            html += _fold(f"{stage.name}, {task}", rows)
        title = f"{stage.name}, held-out prompts at the end of training"
        html += _fold(title, stage.samples[:SAMPLES])
    if not html:
        return none("No completions in this run.")
    return f'<p class="fine">The first ones, not chosen ones; some may be rude.</p>{html}'


def _fold(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    body = "".join(_sample(row) for row in rows)
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _sample(row: Mapping[str, Any]) -> str:
    scores = row.get("scores") or {k: row[k] for k in ("score", "kl", "tokens") if k in row}
    shown = ", ".join(
        f"{escape(k)} {'unscored' if v is None else number(v)}"
        for k, v in scores.items()
        if v is None or isinstance(v, int | float)
    )
    texts = row["completion"] if isinstance(row["completion"], list) else [row["completion"]]
    more = f" (and {len(texts) - SHOWN} more completions)" if len(texts) > SHOWN else ""
    written = "".join(f"<pre>{escape(str(text))}</pre>" for text in texts[:SHOWN])
    return (
        f'<div class="sample"><pre class="prompt">{escape(str(row.get("prompt", "")))}</pre>'
        f'{written}<p class="fine">{shown}{more}</p></div>'
    )


LINEAGE = {
    "parent": "made from",
    "data": "data",
    "seed": "seed",
    "tokens": "tokens",
    "wall_seconds": "wall time in seconds",
    "hardware": "hardware",
    "weights_sha256": "weights sha256",
    "chat_template_sha256": "chat template sha256",
    "recipe_sha256": "recipe sha256",
    "code_version": "code version",
    "versions": "versions",
    "energy_kwh": "energy in kWh",
}


def lineage(run: Run) -> str:
    """Where every checkpoint comes from; full hashes are in lineage.json and on the cards."""
    known = [stage for stage in run.stages.values() if stage.lineage]
    if not known:
        return none("No lineage.json in this run.")
    rows = [["what", *(stage.name for stage in known)]]
    for key, title in LINEAGE.items():
        rows.append([title, *(short(plain(stage.lineage.get(key))) for stage in known)])
    return f'<div class="wide">{html_table(rows)}</div>'


def short(text: str) -> str:
    """Hashes cut to what people compare by eye."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", text)


def plain(value: Any) -> str:
    """A value of lineage.json as a person reads it; what isn't there is *not known*."""
    if value is None or value == {}:
        return "not known"
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return "; ".join(plain(v) for v in value) or "none"
    return (
        number(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else str(value)
    )


def again(run: Run) -> str:
    """The command that does the run again, or the recipe."""
    import yaml

    if not run.recipe:
        return none("No recipe.yaml in this run: the exact command is not known.")
    line = run_again(run.recipe)
    text = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
    how = (
        f"<pre>{escape(line)}</pre>"
        if line
        else "<p>This recipe is not one that comes with align. Save each of its stages as "
        "<code>FOLDER/STAGE.yaml</code>, then:</p><pre>align run FOLDER</pre>"
    )
    return f"{how}<details><summary>recipe.yaml</summary><pre>{escape(text)}</pre></details>"
