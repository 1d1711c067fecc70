"""``align plan RECIPE``."""

import argparse
import json
from dataclasses import asdict

from align.parsing import Parser, overrides
from align.plan.estimate import Plan, plan_recipe
from align.report.tables import terminal


def main(args: list[str]) -> None:
    """Print the plan of a recipe.

    Raises:
        ConfigError: a wrong flag, recipe or value.
    """
    parser = Parser(
        "align plan", epilog="example: align plan llama-3.1-8b --tokens-per-second 9000"
    )
    parser.add_argument("recipe", nargs="?", default="quickstart", help="name or folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="STAGE.FIELD=VALUE",
        help="change one field of one stage (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens-per-second", type=_positive, metavar="N",
        help="trained tokens a second; default: measured by the last run, if there was one",
    )  # fmt: skip
    parser.add_argument("--price-per-hour", type=_positive, metavar="P", help="of all machines")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args(args)
    plans = plan_recipe(
        options.recipe,
        overrides(options.set),
        tokens_per_second=options.tokens_per_second,
        price_per_hour=options.price_per_hour,
    )
    if options.json:
        print(json.dumps([{**asdict(p), "peak": p.peak} for p in plans]))
    else:
        print("\n".join([terminal(table(plans)), "", *details(plans)]))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def table(plans: list[Plan]) -> list[list[str]]:
    """Header and rows for `align.report.tables.terminal` or ``markdown``."""
    rows = [["stage", "parameters", "trained", "memory", "tokens", "time", "cost"]]
    for plan in plans:
        rows.append(
            [
                plan.stage,
                _or_unknown(plan.parameters, "{:,}"),
                _or_unknown(plan.trainable, "{:,}"),
                "not known" if plan.peak is None else size_text(plan.peak),
                _or_unknown(plan.tokens, "≤ {:,}"),
                "not known" if plan.seconds is None else "≤ " + time_text(plan.seconds),
                _or_unknown(plan.cost, "≤ {:,.2f}"),
            ]
        )
    return rows


def details(plans: list[Plan]) -> list[str]:
    """The parts of each stage's memory, and the notes."""
    lines = []
    for plan in plans:
        parts = {**plan.memory, **plan.transient}
        if parts:
            said = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items())
            lines.append(f"{plan.stage}: {said}")
        if plan.flops is not None:
            lines.append(f"{plan.stage}: compute ≤ {plan.flops:.2g} FLOP")
        lines += [f"{plan.stage}: {note}" for note in plan.notes]
    return lines


def _or_unknown(value: float | None, template: str) -> str:
    return "not known" if value is None else template.format(value)


def size_text(size: float) -> str:
    """Bytes in the largest unit that keeps the number above 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def time_text(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
