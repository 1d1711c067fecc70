"""The alignment tax: what a capability lost, item by item, from one checkpoint to the next.

For each task and pair of checkpoints (evals are paired by item id, 2411.00640 section 4.2):

1. d_i = score of the later checkpoint − score of the earlier one, on the same item i;
2. ``delta`` is the mean of d_i, so **negative = lost**; ``tax`` = −delta, **positive = lost**;
3. stderr, ci95 and p are paired and clustered; p is Holm-corrected over the tasks of a pair;
4. ``capability_delta`` is the delta under lenient scoring, ``format_delta`` the rest: answers
   that are right but no longer said in the way that strict scoring reads;
5. the verdict: *tax* or *gain* when Holm's p is under 0.05; else *none* when the interval
   excludes a tax larger than ``margin``; else *unclear*, with the items that it would take.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy import stats as scipy_stats

from align.errors import EvalError
from align.evaluation import stats
from align.evaluation.held_out import UNREWARDED, logged_rewards

MARGIN = 0.03
SIGNIFICANT = 0.05
SIGN = "delta = later - earlier (negative = lost); tax = -delta (positive = lost)"
_LENIENT = {"exact_match": "flexible_match", "strict": "flexible"}
_EXTRAS = ("extraction_failure", "completion_words")

Items = dict[str, dict[str, Any]]
Entry = dict[str, Any]


def alignment_tax(
    base_dir: Path, other_dirs: Mapping[str, Path], *, margin: float = MARGIN
) -> dict[str, Any]:
    """The content of tax.json: every later checkpoint against every earlier one.

    Args:
        base_dir: Evaluation folder (results.json, items/) of the first checkpoint.
        other_dirs: Name -> evaluation folder of the later ones, in their order.
        margin: Largest tax, in the metric's units, that a verdict *none* may leave open.

    Raises:
        EvalError: a folder without results, or checkpoints evaluated on different items.
    """
    folders = {base_dir.name: Path(base_dir), **{n: Path(f) for n, f in other_dirs.items()}}
    loaded = {name: _load(folder) for name, folder in folders.items()}
    pairs = {
        f"{before}->{after}": _pair(
            loaded[before], loaded[after], f"{after} against {before}", margin
        )
        for before, after in combinations(loaded, 2)
    }
    overall = {
        f"{a}->{b}": _overall(
            pairs[f"{a}->{b}"], f"{a}->{b}", margin, _covariance(loaded[a], loaded[b])
        )
        for a, b in combinations(loaded, 2)
    }
    return {
        "schema": 1,
        "sign": SIGN,
        "margin": margin,
        "stages": list(loaded),
        "pairs": pairs,
        "overall": overall,
        "pareto": _pareto(list(loaded), folders, overall),
    }


def table(tax: Mapping[str, Any]) -> str:
    """The tax as lines of text: one per pair and task, the sentence beside the numbers."""
    lines = ["Alignment tax (positive = lost; paired by item, 95% interval, Holm over tasks)"]
    for pair, tasks in tax["pairs"].items():
        lines.append(f"{pair.replace('->', ' → ')}")
        named = [*tasks.items(), ("mean of tasks", tax["overall"][pair])]
        lines += [f"  {name:<24} {_numbers(e)}  {e['sentence']}" for name, e in named]
    return "\n".join(lines)


def compare_items(before: Items, after: Items, task: str, metric: str) -> stats.Paired:
    """Paired difference (after − before) of one metric over the same items.

    Raises:
        EvalError: the two hold different items.
    """
    _same_items(before, after, task)
    ids = list(before)
    clusters = [str(before[i].get("cluster") or i) for i in ids]
    return stats.paired(_column(after, ids, metric), _column(before, ids, metric), clusters)


def _load(folder: Path) -> dict[str, tuple[dict[str, Any], Items]]:
    """Task -> (its entry in results.json, its items by id)."""
    path = folder / "results.json"
    if not path.is_file():
        raise EvalError(f"no results.json in {folder}: evaluate that checkpoint first")
    results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("schema") != 1:
        raise EvalError(f"{path} has schema {results.get('schema')!r}, expected 1: evaluate again")
    return {
        task: (entry, _read_items(folder / "items" / f"{task}.jsonl"))
        for task, entry in results["tasks"].items()
    }


def _read_items(path: Path) -> Items:
    if not path.is_file():
        raise EvalError(f"no items at {path}: the tax pairs items; evaluate that checkpoint again")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return {str(row["id"]): row for row in rows}


def _pair(before: Any, after: Any, title: str, margin: float) -> dict[str, Entry]:
    """Entries of all tasks that measure a capability and that both checkpoints have."""
    entries: dict[str, Entry] = {}
    for task in [t for t in before if t in after]:
        metric = main_metric(before[task][0], before[task][1])
        if metric is not None:
            entries[task] = _entry(before[task][1], after[task][1], task, metric)
    corrected = stats.holm([entry["p"] for entry in entries.values()])
    for (task, entry), p in zip(entries.items(), corrected, strict=True):
        entry["p_holm"] = p
        entry |= _verdict(entry, f"{task}, {title}", margin)
    return entries


def main_metric(entry: Mapping[str, Any], items: Items) -> str | None:
    """The task's main metric (else its first) if it is a capability that items have scores of.

    Bias and toxicity have main metrics of which more is not better: they are no capability.
    """
    metrics = entry["metrics"]
    main = entry.get("main") or next(iter(metrics), None)
    scored = any(main in row["scores"] for row in items.values())
    better = main in metrics and metrics[main].get("higher_is_better") is True
    return main if scored and better else None


def _entry(before: Items, after: Items, task: str, metric: str) -> Entry:
    """The paired numbers of one task."""
    pair = compare_items(before, after, task, metric)
    won, lost = _changes(before, after, metric)
    entry: Entry = {
        "metric": metric,
        "delta": pair.delta,
        "tax": None if pair.delta is None else 0.0 - pair.delta,
        "stderr": pair.stderr,
        "ci95": None if pair.ci95 is None else list(pair.ci95),
        "p": pair.p,
        "p_holm": None,
        "mde80": pair.mde80,
        "n": pair.n,
        "unscored": pair.unscored,
        "items_won": won,
        "items_lost": lost,
        "p_mcnemar": None if won is None or lost is None else stats.mcnemar_exact(lost, won),
    }
    return entry | _format_split(before, after, task, metric, pair.delta)


def _format_split(
    before: Items, after: Items, task: str, metric: str, delta: float | None
) -> Entry:
    """How much of a delta is format, how much capability, and what else changed in the texts.

    Log-likelihood tasks have no format to lose. A generated task without lenient scoring can't
    be split: null, not 0.
    """
    generated = any("completion" in row for row in before.values())
    lenient = _lenient_name(metric, before)
    capability = delta if not generated else None
    if lenient is not None:
        capability = compare_items(before, after, task, lenient).delta
    form = None if delta is None or capability is None else delta - capability
    split: Entry = {"format_delta": form, "capability_delta": capability}
    if generated:
        old, new = _with_words(before), _with_words(after)
        split |= {f"{n}_delta": compare_items(old, new, task, n).delta for n in _EXTRAS}
    return split


def _lenient_name(metric: str, items: Items) -> str | None:
    """The score that reads the same answers leniently, where the items have one."""
    names = {name for row in items.values() for name in row["scores"]}
    candidates = [metric.replace(s, f) for s, f in _LENIENT.items() if s in metric]
    return next((c for c in candidates if c in names and c != metric), None)


def _with_words(items: Items) -> Items:
    """Items with the length of their completion as one more score."""
    return {
        i: {**row, "scores": {**row["scores"], "completion_words": _words(row.get("completion"))}}
        for i, row in items.items()
    }


def _words(completion: Any) -> float | None:
    texts = [completion] if isinstance(completion, str) else completion
    return sum(len(t.split()) for t in texts) / len(texts) if texts else None


def _changes(before: Items, after: Items, metric: str) -> tuple[int | None, int | None]:
    """Items won and lost, of a binary metric."""
    pairs = [(before[i]["scores"].get(metric), after[i]["scores"].get(metric)) for i in before]
    scored = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not all(value in (0, 1) for pair in scored for value in pair):
        return None, None
    return sum(b > a for a, b in scored), sum(b < a for a, b in scored)


def _covariance(before: Any, after: Any) -> float:
    """Sum of the covariances of the deltas of all pairs of tasks that ask the same items.

    Zero-shot and few-shot of one task go up and down together, so their mean is less certain than
    that of two tasks that share nothing.
    """
    shares: dict[str, tuple[str, dict[str, float]]] = {}
    for task in [t for t in before if t in after]:
        entry, items = before[task]
        metric = main_metric(entry, items)
        if metric is not None and entry.get("data_sha256"):
            shares[task] = (entry["data_sha256"], _shares(items, after[task][1], metric))
    return sum(
        one[c] * two[c]
        for (data, one), (other, two) in combinations(shares.values(), 2)
        if data == other
        for c in one.keys() & two.keys()
    )


def _shares(before: Items, after: Items, metric: str) -> dict[str, float]:
    """What each cluster adds to the distance of a delta from its mean."""
    pairs = {i: (before[i]["scores"].get(metric), after[i]["scores"].get(metric)) for i in before}
    changes = {i: b - a for i, (a, b) in pairs.items() if a is not None and b is not None}
    centre = sum(changes.values()) / max(len(changes), 1)
    found: dict[str, float] = {}
    for i, change in changes.items():
        cluster = str(before[i].get("cluster") or i)
        found[cluster] = found.get(cluster, 0.0) + (change - centre) / len(changes)
    return found


def _overall(tasks: Mapping[str, Entry], pair: str, margin: float, covariance: float) -> Entry:
    """The mean over tasks, each counting the same; they vary together by ``covariance``."""
    before, _, after = pair.partition("->")
    entries = [e for e in tasks.values() if e["stderr"] is not None]
    if not entries:
        empty: Entry = dict.fromkeys(("delta", "tax", "stderr", "ci95", "p", "p_holm", "mde80"))
        empty |= {"n": 0, "tasks": 0, "format_delta": None, "capability_delta": None}
        return empty | _verdict(empty, f"mean of tasks, {after} against {before}", margin)
    k = len(entries)
    delta = sum(e["delta"] for e in entries) / k
    alone = sum((e["mde80"] / stats.power_factor()) ** 2 for e in entries)
    stderr = max(alone + 2 * covariance, 0.0) ** 0.5 / k
    half = stderr * float(scipy_stats.norm.ppf(0.975))
    p = float(2 * scipy_stats.norm.sf(abs(delta) / stderr)) if stderr else float(delta == 0)
    entry: Entry = {
        "delta": delta,
        "tax": 0.0 - delta,
        "stderr": stderr,
        "ci95": [delta - half, delta + half],
        "p": p,
        "p_holm": p,
        "mde80": stats.power_factor() * stderr,
        "n": sum(e["n"] for e in entries),
        "tasks": k,
        "format_delta": _mean([e["format_delta"] for e in entries]),
        "capability_delta": _mean([e["capability_delta"] for e in entries]),
    }
    return entry | _verdict(
        entry, f"mean of {k} task{'s' * (k > 1)}, {after} against {before}", margin
    )


def _verdict(entry: Entry, title: str, margin: float) -> Entry:
    """tax, gain, none or unclear, and the sentence that says so (step 5)."""
    if entry["ci95"] is None:
        words = f"{title}: can't tell, {entry['n']} scored items give no interval."
        return {"verdict": "unclear", "sentence": words}
    low, high = (0.0 - end for end in reversed(entry["ci95"]))
    size = f"{_points(entry['tax'])} ({_points(low)} to {_points(high)})"
    if entry["p_holm"] is not None and entry["p_holm"] < SIGNIFICANT:
        if entry["tax"] > 0:
            return {"verdict": "tax", "sentence": f"{title}: a tax, {size} lost."}
        gained = f"{_points(-entry['tax'])} ({_points(-high)} to {_points(-low)})"
        return {"verdict": "gain", "sentence": f"{title}: a gain, {gained}."}
    if high <= margin:
        most = f"no tax larger than {_points(high)}" if high > 0 else "no tax"
        words = f"{title}: {most}; measured {size} lost."
        return {"verdict": "none", "sentence": words}
    needed = stats.needed_n(margin, entry["mde80"] / stats.power_factor(), entry["n"])
    words = f"{title}: can't tell, measured {size} lost"
    if needed is None or needed <= entry["n"]:  # enough items, and a value close to the margin
        return {"verdict": "unclear", "sentence": f"{words}, which allows {_points(high)}."}
    more = f"to detect {_points(margin)} needs n ≈ {needed}, has {entry['n']}"
    return {"verdict": "unclear", "sentence": f"{words}; {more}."}


def _points(value: float) -> str:
    """A share as percentage points, or a number above 1 as it is."""
    return f"{100 * value:+.1f} pp" if abs(value) <= 1 else f"{value:+.3g}"


def _pareto(
    stages: Sequence[str], folders: Mapping[str, Path], overall: Mapping[str, Entry]
) -> list[dict[str, Any]]:
    """Reward beside tax for each stage; only stages whose reward was measured have one."""
    rewards = logged_rewards(next(iter(folders.values())).parent.parent)
    points = []
    for stage in stages:
        entry = overall.get(f"{stages[0]}->{stage}")
        interval = entry["ci95"] if entry else None
        points.append(
            {
                "name": stage,
                "lost": 0.0 if entry is None else entry["tax"],
                "lost_ci95": None if interval is None else [-interval[1], -interval[0]],
                **rewards.get(stage, UNREWARDED),
            }
        )
    return points


def _same_items(before: Items, after: Items, task: str) -> None:
    if before.keys() == after.keys():
        return
    lone = [*(before.keys() - after.keys()), *(after.keys() - before.keys())]
    raise EvalError(
        f"{task}: the two evaluations hold other items ({len(before)} and {len(after)}, "
        f"{len(lone)} in only one of them, such as {min(lone)}): a paired comparison needs the "
        "same items; evaluate both with the same --limit and --seed"
    )


def _column(items: Items, ids: Sequence[str], metric: str) -> list[float | None]:
    return [items[i]["scores"].get(metric) for i in ids]


def _numbers(entry: Entry) -> str:
    if entry["tax"] is None or entry["ci95"] is None:
        return f"{'–':>9} n={entry['n']:<6}"
    low, high = -entry["ci95"][1], -entry["ci95"][0]
    return f"{entry['tax']:+.3f} [{low:+.3f}, {high:+.3f}] n={entry['n']:<6}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
