"""Shared by the scorers: picking a choice, means over rows, extraction of a text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from align.evaluation import stats
from align.evaluation.results import Metric

Row = Mapping[str, Any]
Scores = dict[str, float]
UNSCORED = float("nan")


class Meaning(NamedTuple):
    """What a metric says, in a sentence for readers who know none of this."""

    text: str
    higher_is_better: bool | None = None
    ideal: float | None = None


def metric(estimate: stats.Estimate, meaning: Meaning) -> Metric:
    """A number with its interval and its sentence."""
    value, stderr, ci95, n, _ = estimate
    return Metric(value, stderr, ci95, n, meaning.higher_is_better, meaning.ideal, meaning.text)


def means(
    rows: Sequence[Row], meanings: Mapping[str, Meaning], kind: Literal["auto", "signs"] = "auto"
) -> dict[str, Metric]:
    """The clustered mean of each named score over all rows that have it."""
    return {
        name: metric(stats.mean_with_ci(column(rows, name), clusters(rows), kind=kind), meaning)
        for name, meaning in meanings.items()
    }


def by_group(rows: Sequence[Row], key: str, name: str, meaning: Meaning) -> dict[str, Metric]:
    """The mean of one score within each value of a meta field, items as their own clusters."""
    found: dict[str, Metric] = {}
    for group in sorted({str(row["meta"][key]) for row in rows}):
        some = [row for row in rows if str(row["meta"][key]) == group]
        sentence = meaning._replace(text=f"{meaning.text} Only {key} = {group}.")
        found[f"{name}_{group.replace(' ', '_')}"] = metric(
            stats.mean_with_ci(column(some, name)), sentence
        )
    return found


def column(rows: Iterable[Row], name: str) -> list[float | None]:
    """One score of every row; None where it has none."""
    return [row["scores"].get(name) for row in rows]


def clusters(rows: Iterable[Row]) -> list[str]:
    """The cluster label of every row; an item without one is its own cluster."""
    return [str(row.get("cluster") or row["id"]) for row in rows]


def known(value: float | None) -> bool:
    """Whether a score is scored at all."""
    return value is not None and not np.isnan(value)


def cluster_sums(rows: Sequence[Row], columns: Sequence[Sequence[float]]) -> stats.Floats:
    """(G, K): what each cluster adds to each column, for ``stats.smooth``."""
    labels = clusters(rows)
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    sums = np.zeros((len(index), len(columns)))
    for label, values in zip(labels, zip(*columns, strict=True), strict=True):
        sums[index[label]] += values
    return sums


def loglikelihoods(results: Sequence[Any]) -> list[float]:
    """The log-likelihood of each choice, from lm-eval's (value, is_greedy) pairs."""
    return [float(r[0] if isinstance(r, (tuple, list)) else r) for r in results]


def best(values: Sequence[float]) -> int:
    """Index of the largest value; the first of equals."""
    if any(np.isnan(v) for v in values):
        raise ValueError(f"a choice has no log-likelihood: {list(values)}")
    return int(np.argmax(values))


def texts(results: Sequence[Any]) -> list[str]:
    """All generated texts of an item, also where lm-eval nests repeated samples."""
    flat: list[str] = []
    for result in results:
        flat += [str(t) for t in result] if isinstance(result, (list, tuple)) else [str(result)]
    return flat


def is_generated(results: Sequence[Any]) -> bool:
    """Whether an item's outputs are texts rather than log-likelihoods."""
    first = results[0]
    return isinstance(first, str) or (
        isinstance(first, (list, tuple)) and isinstance(first[0], str)
    )


def mean(values: Sequence[float | None]) -> float:
    """Mean of what is scored: the aggregation that the task files name for plain lm-eval."""
    scored = [v for v in values if known(v)]
    return float(np.mean(np.array(scored, dtype=float))) if scored else UNSCORED
