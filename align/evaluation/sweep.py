"""The sweep over α: what each average of two checkpoints keeps of the reward and of the skills.

1. Average the checkpoints for each α; α = 0 and α = 1 are the checkpoints themselves.
2. Evaluate every one of them, and the baseline, on the same items.
3. The tax against the baseline, and what α = 1 lost against each α: what that α buys back.
4. The reward model's mean score on held-out prompts, paired by prompt with α = 0.
5. The Pareto front over (reward, tax). The points go into sweep.json.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align import checkpoint
from align.errors import CheckpointError
from align.evaluation import results
from align.evaluation.averaging import average, front, is_average_of
from align.evaluation.held_out import UNREWARDED, HeldOut, as_reward, prompt_scores
from align.evaluation.run import evaluate
from align.evaluation.tax import alignment_tax

ALPHAS = (0.25, 0.5, 0.75)
FILE = "sweep.json"
Measure = Callable[[str, Path], object]


def sweep(
    first: Path,
    second: Path,
    baseline: str,
    output: Path,
    *,
    suites: Sequence[str],
    alphas: Sequence[float] = ALPHAS,
    asked: HeldOut | None = None,
    reward_model: str | None = None,
    seed: int = 0,
    batch_size: int | str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Evaluate the averages of two checkpoints; the content of ``output/sweep.json``.

    Args:
        first: Checkpoint at α = 0, such as SFT.
        second: Checkpoint at α = 1, such as PPO.
        baseline: Checkpoint that the tax is measured against.
        output: Folder of sweep.json and, under ``sweep/``, of the averages and their results.
        suites: What the tax is measured on.
        alphas: Weights of the second checkpoint; 0 and 1 are always measured.
        asked: Held-out prompts; None leaves the reward unmeasured.
        reward_model: Checkpoint that scores the answers to them.
        seed: Of sampling and of the choice of items.
        batch_size: Rows of a forward pass.
        **options: Others of `evaluate`.
    """
    options |= {"seed": seed, "batch_size": batch_size}
    work = output / "sweep"
    found = measured(
        first,
        second,
        baseline,
        work,
        alphas=alphas,
        measure=lambda model, folder: evaluate(model, suites, output=folder, **options),
    )
    if asked is not None and reward_model is not None:
        from align.scoring import RewardScorer

        scorer = RewardScorer.load(checkpoint.resolve(reward_model))
        start: list[float] | None = None
        for point in found["points"]:
            scores = prompt_scores(
                Path(point["model"]),
                asked,
                scorer,
                cache=work / f"alpha-{point['alpha']:g}" / ".cache",
                seed=seed,
                batch_size=batch_size,
            )
            point |= as_reward(scores, start)
            start = scores if start is None else start
    best = {point["name"] for point in front(found["points"])}
    for point in found["points"]:
        point["on_front"] = point["name"] in best if point["reward"] is not None else None
    found |= {"suites": list(suites), "reward_model": reward_model}
    results.write_json(output / FILE, found)
    return found


def measured(
    first: Path,
    second: Path,
    baseline: str,
    work: Path,
    *,
    alphas: Sequence[float],
    measure: Measure,
) -> dict[str, Any]:
    """Steps 1 to 3: the points with their tax, without any reward."""
    measure(baseline, work / "baseline")
    folders: dict[str, Path] = {}
    models: dict[str, Path] = {}
    for alpha in sorted({0.0, 1.0, *alphas}):
        folder = work / f"alpha-{alpha:g}"
        ends = {0.0: first, 1.0: second}
        models[folder.name] = ends.get(alpha) or _average(first, second, alpha, folder / "model")
        folders[folder.name] = folder
        measure(str(models[folder.name]), folder)
    tax = alignment_tax(work / "baseline", folders)
    points = [
        {
            "name": name.replace("-", " "),
            "alpha": float(name.removeprefix("alpha-")),
            "model": str(model),
            **_lost(tax["overall"][f"baseline->{name}"], "lost"),
            **_lost(tax["overall"].get(f"{name}->alpha-1"), "bought_back"),
            "tasks": {
                task: {k: entry[k] for k in ("tax", "ci95", "p_holm", "n", "verdict")}
                for task, entry in tax["pairs"][f"baseline->{name}"].items()
            },
            **UNREWARDED,
        }
        for name, model in models.items()
    ]
    return {
        "schema": results.SCHEMA,
        "first": str(first),
        "second": str(second),
        "baseline": baseline,
        "points": points,
        "sentences": [tax["overall"][f"baseline->{name}"]["sentence"] for name in models],
    }


def _average(first: Path, second: Path, alpha: float, output: Path) -> Path:
    """The average, made now or by the run of this sweep that was interrupted.

    Raises:
        CheckpointError: other weights were averaged there.
    """
    if not output.exists():
        return average(first, second, alpha, output)
    if not is_average_of(output, first, second, alpha):
        raise CheckpointError(
            f"{output} holds an average of other weights; delete {output.parent.parent}, or give "
            "another --output"
        )
    return output


def _lost(entry: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """A tax with its interval turned to *positive = lost*."""
    if entry is None:
        return {name: None, f"{name}_ci95": None}
    ends = entry["ci95"]
    found = {name: entry["tax"], f"{name}_ci95": None if ends is None else [-ends[1], -ends[0]]}
    return found | ({"n": entry["n"]} if name == "lost" else {})


def table(found: Mapping[str, Any]) -> str:
    """The points as lines of text."""
    lines = [
        f"Averages of {found['first']} (α = 0) and {found['second']} (α = 1), "
        f"against {found['baseline']}",
        "lost: mean capability lost against the baseline (↓); bought back: of what α = 1 lost; "
        "gain: reward over α = 0 (↑)",
        "",
        f"{'α':>5}  {'lost':<26}{'bought back':<26}{'reward':<28}{'gain':<28}front",
    ]
    for p in found["points"]:
        cells = [
            _cell(p["lost"], p["lost_ci95"], 26),
            _cell(p["bought_back"], p["bought_back_ci95"], 26),
            _cell(p["reward"], p["reward_ci95"], 28),
            _cell(p["gain"], p["gain_ci95"], 28),
        ]
        lines.append(f"{p['alpha']:>5g}  {''.join(cells)}{'yes' if p['on_front'] else ''}".rstrip())
    point = found["points"][0]
    lines += ["", f"n = {point['n']} items over {len(point['tasks'])} task(s)"]
    if point["prompts"]:
        lines[-1] += f", {point['prompts']} held-out prompts; intervals are 95%, paired"
    return "\n".join(lines)


def _cell(value: float | None, ends: Sequence[float] | None, width: int) -> str:
    if value is None:
        return f"{'–':<{width}}"
    interval = "" if ends is None else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]"
    return f"{value:+.3f}{interval}".ljust(width)
