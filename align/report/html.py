"""report.html: one file without scripts, links or fonts from elsewhere, for screen and paper."""

import os
import re
from html import escape
from pathlib import Path

import align
from align.report import evidence, pareto, svg
from align.report.load import Run, load_run
from align.report.parts import dots, html_table, metric_table, none
from align.report.style import CSS
from align.report.svg import Dot
from align.report.tables import (
    NOT_MEASURED,
    fixed,
    metric_rows,
    notes,
    tax_rows,
    tax_table,
)
from align.report.words import headlines

VERDICTS = {"tax": "tax", "gain": "gain", "none": "no tax", "unclear": "can't tell"}


def write(run_dir: Path | str) -> Path:
    """Write ``report.html`` into a run folder from the files that are there.

    Raises:
        EvalError: not a run folder, or a file in it that can't be read.
    """
    run = load_run(Path(run_dir))
    target = run.folder / "report.html"
    draft = target.with_suffix(".html.tmp")
    draft.write_text(page(run), encoding="utf-8")
    os.replace(draft, target)
    return target


def page(run: Run) -> str:
    """The whole document."""
    sections = [
        ("Verdicts", _verdicts(run)),
        ("Results", _results(run)),
        ("Sums by number of steps", _steps(run)),
        ("Alignment tax", _tax(run)),
        ("Reward against tax", pareto.stages(run) + pareto.averages(run)),
        ("Training", evidence.training(run)),
        ("Reward model", evidence.reward_model(run)),
        ("Toxicity", evidence.toxicity(run)),
        ("What the models write", evidence.samples(run)),
        ("Lineage", evidence.lineage(run)),
        ("Do it again", evidence.again(run)),
    ]
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{title}</h2>{html}</section>'
        for title, html in sections
    )
    nav = " ".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in sections)
    name = escape(run.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: alignment '
        f'report</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{CSS}</style></head><body>'
        f"<header><h1>{name}</h1><p>{_intro(run)}</p><nav>{nav}</nav></header><main>{body}</main>"
        f"</body></html>\n"
    )


def _intro(run: Run) -> str:
    created = [r["created"] for r in run.results.values() if r.get("created")]
    when = f", evaluated {escape(max(created)[:10])}" if created else ""
    return (
        f"What each stage of alignment bought and what it cost{when}. Every value stands with its "
        "95% interval and the number of items n. Written by align "
        f"{escape(align.__version__)} from the files of the run."
    )


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower())


# ---------------------------------------------------------------- results


def _verdicts(run: Run) -> str:
    marks = {"good": "✓", "bad": "✗", "plain": "=", "unknown": "?"}
    items = "".join(
        f'<li class="{h.tone}"><span class="mark">{marks[h.tone]}</span>'
        f"<div>{escape(h.text)}{_meaning(h.meaning)}</div></li>"
        for h in headlines(run)
    )
    return (
        f'<ul class="verdicts">{items}</ul><p class="fine">✓ better or no loss · ✗ worse · '
        "= no difference that can be told · ? not known. Except for the tax, which is paired item "
        "by item, two checkpoints count as different only where their intervals do not overlap."
        "</p>"
    )


def _meaning(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _results(run: Run) -> str:
    if not run.policies:
        return none(f"{NOT_MEASURED}: there is no eval/<stage>/results.json in this run.")
    warnings = "".join(f"<li>{escape(line)}</li>" for line in notes(run.results))
    return (
        metric_table(run.policies)
        + (f'<ul class="warn">{warnings}</ul>' if warnings else "")
        + '<p class="fine">Green and red: away from the first column by more than both '
        "intervals, in the good or the bad direction.</p>"
    )


STEP = re.compile(r"exact_match_(\d+)step")


def _steps(run: Run) -> str:
    columns: dict[int, list[Dot]] = {}
    for row in metric_rows(run.policies):
        match = STEP.fullmatch(row.metric)
        if match:
            columns.setdefault(int(match[1]), []).extend(dots(row))
    if not columns:
        return none(f"{NOT_MEASURED}: no results by number of steps.")
    named = [(f"{k} step{'s' * (k > 1)}", dots) for k, dots in sorted(columns.items())]
    return svg.groups(named, title="Sums solved, by number of steps", y=(0.0, 1.0))


# ---------------------------------------------------------------- tax


def _tax(run: Run) -> str:
    rows = tax_rows(run.tax)
    if not rows:
        return none(f"{NOT_MEASURED}: there is no tax.json in this run.")
    picture = svg.forest(
        [
            (
                f"{r.task}, {r.before} → {r.after}",
                Dot(r.verdict, r.lost, *(r.ci95 or (None, None))),
            )
            for r in rows
            if r.lost is not None
        ],
        title="Capability lost, item by item (right of 0: lost)",
        x_label="lost (metric units)",
    )
    sentences = "".join(
        f'<li><b class="v-text-{escape(r.verdict)}">{VERDICTS.get(r.verdict, r.verdict)}</b> '
        f"{escape(r.sentence)}{_split(r.format_lost, r.capability_lost)}"
        f"{_smallest(r.mde80)}</li>"
        for r in rows
    )
    return (
        f"<p>Each item is compared with itself before and after. A tax is what was lost.</p>"
        f'<div class="wide">{picture}</div><ul class="plainlist">{sentences}</ul>'
        f'<div class="wide">{html_table(tax_table(run.tax))}</div>'
    )


def _split(format_lost: float | None, capability_lost: float | None) -> str:
    if not format_lost or capability_lost is None:
        return ""
    return (
        f" Of it {fixed(format_lost, True)} is format (the answer is there, written in another "
        f"way) and {fixed(capability_lost, True)} capability."
    )


def _smallest(mde80: float | None) -> str:
    if mde80 is None:
        return ""
    return f" A loss under {fixed(mde80)} would be missed more than one time in five."
