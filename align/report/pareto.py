"""What was gained beside what was lost: stages of a run, and averages of two checkpoints."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from align.report import svg
from align.report.load import Run
from align.report.parts import html_table, none
from align.report.svg import Dot
from align.report.tables import NOT_MEASURED, fixed, interval

Point = Mapping[str, Any]
UP_LEFT = "<p>Up and to the left is better: more reward for less loss.</p>"
X_LABEL = "mean capability lost"


def stages(run: Run) -> str:
    """Reward against tax for the stages whose reward was measured."""
    points = (run.tax or {}).get("pareto", [])
    if not both(points):
        return none(f"{NOT_MEASURED}: no reward beside the tax for any stage.")
    first = points[0]["name"]
    picture = plane(points, "Reward against alignment tax", list(run.policies))
    rows = [["stage", f"lost against {first}", "mean score", "gain over sft", "prompts"]]
    rows += [[p["name"], *cells(p, is_first=p is points[0])] for p in points]
    return f'{UP_LEFT}{picture}<div class="wide">{html_table(rows)}</div>'


def averages(run: Run) -> str:
    """Reward against tax for weights between two checkpoints; nothing where none were made."""
    if run.sweep is None:
        return ""
    points = run.sweep["points"]
    named = [{**p, "name": f"α = {p['alpha']:g}"} for p in points]
    picture = plane(named, "Averages of two checkpoints", [])
    lost = f"lost against {last_part(run.sweep['baseline'])}"
    rows = [["α", lost, "mean score", "gain over α = 0", "bought back", "front"]]
    for p in points:
        back = "–" if p["alpha"] == 1 else value(p["bought_back"], p["bought_back_ci95"])
        front = {True: "yes", False: "no", None: "–"}[p["on_front"]]
        rows.append([f"{p['alpha']:g}", *cells(p)[:-1], back, front])
    asked = points[0]["prompts"]
    scored = f" Scores: {asked} held-out prompts." if asked else ""
    return (
        f"<h3>Weights between {escape(last_part(run.sweep['first']))} (α = 0) and "
        f"{escape(last_part(run.sweep['second']))} (α = 1)</h3><p>Bought back: what α = 1 lost "
        "against this average, item by item. Front: no other α has more reward for no more "
        f'loss.{scored}</p>{picture}<div class="wide">{html_table(rows)}</div>'
    )


def both(points: Sequence[Point]) -> list[Point]:
    """The points that have a place in the picture."""
    return [p for p in points if p.get("lost") is not None and p.get("reward") is not None]


def plane(points: Sequence[Point], title: str, order: Sequence[str]) -> str:
    """The picture of the points that have both; empty without any."""
    return svg.plane(
        [
            (p["name"], dot(p["lost"], p.get("lost_ci95")), dot(p["reward"], p.get("reward_ci95")))
            for p in both(points)
        ],
        title=title,
        x_label=X_LABEL,
        y_label="mean score on held-out prompts",
        order=order,
    )


def dot(number: float, ci95: Sequence[float] | None) -> Dot:
    """A value with its interval."""
    return Dot("", number, *(ci95 or (None, None)))


def cells(point: Point, *, is_first: bool = False) -> list[str]:
    """Lost, score, gain and prompts of a point; gains count from the first with a score."""
    gain = value(point.get("gain"), point.get("gain_ci95"))
    return [
        "0 (the start)" if is_first else value(point["lost"], point.get("lost_ci95")),
        value(point.get("reward"), point.get("reward_ci95"), signed=False),
        "–" if point.get("gain") is None and point.get("reward") is not None else gain,
        str(point.get("prompts") or "–"),
    ]


def value(number: float | None, ci95: Sequence[float] | None, signed: bool = True) -> str:
    """A value with its interval, or *not measured*."""
    if number is None:
        return NOT_MEASURED
    return f"{fixed(number, signed)} {interval(ci95, signed)}"


def last_part(path: str) -> str:
    """The name of a checkpoint without its folders."""
    return path.rstrip("/").rpartition("/")[2]
