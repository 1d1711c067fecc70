"""Uncertainty of evaluation numbers: intervals, paired comparisons, power.

Conventions of the whole package:

- NaN or None is *unscored*: dropped, counted in ``unscored``, never 0;
- fewer than two items, or two clusters, have neither stderr nor interval;
- items of one cluster (a passage, a template, a prompt) are not independent: the stderr is
  clustered (2411.00640, section 2.2) and the degrees of freedom are clusters − 1.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats takes half a second to import: where it is needed

Floats = NDArray[np.float64]
Values = Sequence[float | None] | Floats
Clusters = Sequence[object]
Interval = tuple[float, float]
POWER = 0.8
LEVEL = 0.95
TINY = 1e-18  # variance that is rounding


class Estimate(NamedTuple):
    """A number with what is needed to believe it."""

    value: float | None
    stderr: float | None
    ci95: Interval | None
    n: int
    unscored: int = 0


class Paired(NamedTuple):
    """Mean of a − b over the same items; ``mde80`` is the difference seen with 80% power."""

    delta: float | None
    stderr: float | None
    ci95: Interval | None
    p: float | None
    n: int
    mde80: float | None
    unscored: int = 0


class Spread(NamedTuple):
    """Standard error of a mean and its degrees of freedom."""

    stderr: float
    df: int


def mean_with_ci(
    values: Values,
    clusters: Clusters | None = None,
    *,
    kind: Literal["auto", "t", "wilson", "signs", "bootstrap"] = "auto",
    seed: int = 0,
) -> Estimate:
    """The mean of item scores with a 95% interval.

    Args:
        values: One score an item; None and NaN are unscored.
        clusters: One label an item; None makes every item its own cluster.
        kind: ``t`` (mean ± t·stderr), ``wilson`` (scores of 0 and 1), ``signs`` (scores of −1 and
            1: Wilson's interval of the share of 1s, brought to −1 … 1), ``bootstrap`` (over
            clusters), ``auto`` (wilson where all scores are 0 or 1, else t).
        seed: Of the bootstrap.
    """
    if kind == "signs":
        return _of_signs(mean_with_ci((_floats(values) + 1) / 2, clusters, kind="wilson"))
    scores, labels, unscored = _scored(values, clusters)
    if len(scores) == 0:
        return Estimate(None, None, None, 0, unscored)
    value = float(scores.mean())
    spread = clustered_stderr(scores, labels)
    if spread is None:
        return Estimate(value, None, None, len(scores), unscored)
    if kind == "bootstrap":
        stderr, interval = _bootstrap(scores, labels, seed)
        return Estimate(value, stderr, interval, len(scores), unscored)
    binary = is_binary(scores)
    if kind == "wilson" and not binary:
        raise ValueError("a Wilson interval is for scores of 0 and 1; use kind='t'")
    if binary and kind != "t":
        interval = _wilson(value, len(scores), spread, labels)
    else:
        interval = t_interval(value, spread)
    return Estimate(value, spread.stderr, interval, len(scores), unscored)


def _of_signs(share: Estimate) -> Estimate:
    """The mean of −1s and 1s from the share of 1s."""
    if share.value is None or share.stderr is None or share.ci95 is None:
        return share._replace(value=None if share.value is None else 2 * share.value - 1)
    low, high = share.ci95
    return Estimate(
        2 * share.value - 1, 2 * share.stderr, (2 * low - 1, 2 * high - 1), share.n, share.unscored
    )


def clustered_stderr(scores: Floats, labels: NDArray[np.int64]) -> Spread | None:
    """Standard error of a mean over clusters (2411.00640, equation 4), None below two clusters.

    With the usual factor G/(G − 1), so that single-item clusters give the plain stderr.
    """
    totals = np.bincount(labels, weights=scores - scores.mean())
    groups = len(totals)
    if groups < 2:
        return None
    variance = float((totals**2).sum()) / len(scores) ** 2 * groups / (groups - 1)
    return Spread(variance**0.5, groups - 1)


def t_interval(value: float, spread: Spread) -> Interval:
    """Value ± t·stderr at 95%."""
    half = float(special.stdtrit(spread.df, (1 + LEVEL) / 2)) * spread.stderr
    return (value - half, value + half)


def smooth(
    sums: Floats, function: Callable[[Floats], float], limits: Interval | None = None
) -> Estimate:
    """A smooth function of totals, with its jackknife over clusters.

    For numbers that are no mean of item scores, such as a product of two rates.

    Args:
        sums: (G, K) what each cluster adds to each of K totals; column 0 counts its items.
        function: (K,) totals -> the number; NaN where it has no value.
        limits: what the number can't leave. Where no cluster differs from the others, and the
            jackknife sees no spread, Wilson's share of clusters that may differ unseen,
            z²/(G + z²), is taken to lie at a limit.
    """
    totals = sums.sum(axis=0)
    n = int(totals[0]) if len(sums) else 0
    value = function(totals) if n else float("nan")
    if not np.isfinite(value):
        return Estimate(None, None, None, n)
    groups = len(sums)
    left_out = np.array([function(totals - row) for row in sums])
    left_out = left_out[np.isfinite(left_out)]
    if groups < 2 or len(left_out) < groups:
        return Estimate(value, None, None, n)
    variance = (groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum())
    spread = Spread(variance**0.5, groups - 1)
    low, high = t_interval(value, spread)
    if limits is not None:
        z = float(special.ndtri((1 + LEVEL) / 2)) if variance < TINY else 0.0
        unseen = z * z / (groups + z * z)
        low -= unseen * (value - limits[0])
        high += unseen * (limits[1] - value)
        low, high = max(limits[0], low), min(limits[1], high)
    return Estimate(value, spread.stderr, (low, high), n)


def paired(a: Values, b: Values, clusters: Clusters | None = None) -> Paired:
    """Mean difference a − b over the same items (2411.00640, section 4.2).

    Binary items get the interval of Agresti and Min (2005: half a pair added to each cell of
    the 2×2 table), which does not collapse when no item changes, and the exact McNemar test;
    others the clustered t interval and t test.
    """
    if len(a) != len(b):
        raise ValueError(f"paired scores need the same items: got {len(a)} and {len(b)}")
    first, second = _floats(a), _floats(b)
    differences, labels, unscored = _scored(first - second, clusters)
    n = len(differences)
    if n == 0:
        return Paired(None, None, None, None, 0, None, unscored)
    delta = float(differences.mean())
    spread = clustered_stderr(differences, labels)
    if spread is None:
        return Paired(delta, None, None, None, n, None, unscored)
    if is_binary(first) and is_binary(second):
        centre, wide = _agresti_min(differences, labels, spread)
    else:
        centre, wide = delta, spread
    low, high = t_interval(centre, wide)
    interval = (min(low, delta), max(high, delta))
    p = _paired_p(differences, labels, spread, is_binary(first) and is_binary(second))
    return Paired(delta, spread.stderr, interval, p, n, detectable(wide), unscored)


def detectable(spread: Spread) -> float:
    """Smallest true difference found at 5% (two-sided) with 80% power."""
    return power_factor(spread.df) * spread.stderr


def needed_n(effect: float, stderr: float, n: int) -> int | None:
    """Items needed to detect an effect with 80% power, judging by the stderr seen on n items."""
    if effect == 0 or n < 2:
        return None
    needed, df = 0.0, float("inf")
    while True:  # the fewer items, the wider t: from the normal one upwards
        more = float(np.ceil(n * (power_factor(df) * stderr / abs(effect)) ** 2))
        if more <= needed:
            return int(needed)
        needed, df = more, max(1.0, more - 1)


def power_factor(df: float = float("inf")) -> float:
    """How many stderrs a true difference must have to be found at 5% with 80% power."""
    return float(special.stdtrit(df, (1 + LEVEL) / 2) + special.ndtri(POWER))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm-corrected p-values in the order given; None stays None and isn't counted."""
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    floor = 0.0
    for rank, (p, i) in enumerate(known):
        floor = max(floor, min(1.0, (len(known) - rank) * p))
        corrected[i] = floor
    return corrected


def mcnemar_exact(b: int, c: int) -> float:
    """Exact two-sided McNemar test of b items lost against c items won."""
    return min(1.0, 2 * float(special.bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0


def randomisation_test(
    a: Values, b: Values, clusters: Clusters | None = None, *, draws: int = 9999, seed: int = 0
) -> float | None:
    """P-value of the mean of a − b when the two sides of each pair are swapped at random.

    Whole clusters are swapped together. Exact where 2^clusters is at most ``draws``.
    """
    differences, labels, _ = _scored(_floats(a) - _floats(b), clusters)
    if len(differences) == 0:
        return None
    from scipy import stats as scipy_stats

    totals = np.bincount(labels, weights=differences)
    result = scipy_stats.permutation_test(
        (totals,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def is_binary(scores: Floats) -> bool:
    """Whether every scored value is 0 or 1."""
    known = scores[~np.isnan(scores)]
    return bool(np.isin(known, (0.0, 1.0)).all())


def _floats(values: Values) -> Floats:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _scored(values: Values, clusters: Clusters | None) -> tuple[Floats, NDArray[np.int64], int]:
    """The scored values, their clusters as 0 … G − 1, and how many were not scored."""
    scores = _floats(values)
    if clusters is not None and len(clusters) != len(scores):
        raise ValueError(f"got {len(scores)} scores and {len(clusters)} clusters")
    keep = ~np.isnan(scores)
    if clusters is None:
        labels = np.arange(int(keep.sum()))
    else:
        index: dict[object, int] = {}
        kept = [c for c, k in zip(clusters, keep, strict=True) if k]
        labels = np.array([index.setdefault(c, len(index)) for c in kept], dtype=np.int64)
    return scores[keep], labels, int((~keep).sum())


def _wilson(p: float, n: int, spread: Spread, labels: NDArray[np.int64]) -> Interval:
    """Wilson's score interval with the effective number of independent items."""
    groups = int(labels.max()) + 1
    clustered = groups < n and spread.stderr > 0
    effective = p * (1 - p) / spread.stderr**2 if clustered else float(groups)
    z = float(special.ndtri((1 + LEVEL) / 2))
    if groups < n:
        z = float(special.stdtrit(spread.df, (1 + LEVEL) / 2))
    centre = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * (p * (1 - p) / effective + (z / (2 * effective)) ** 2) ** 0.5
    half /= 1 + z * z / effective
    return (max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def _bootstrap(scores: Floats, labels: NDArray[np.int64], seed: int) -> tuple[float, Interval]:
    """Standard deviation and percentiles of the mean when clusters are drawn again."""
    from scipy import stats as scipy_stats

    sums, counts = np.bincount(labels, weights=scores), np.bincount(labels)
    result = scipy_stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return float(result.standard_error), (float(interval.low), float(interval.high))


def _agresti_min(
    differences: Floats, labels: NDArray[np.int64], spread: Spread
) -> tuple[float, Spread]:
    """Centre and spread for matched binary pairs, widened by the design effect of clusters.

    Where no item changed, Tango's score limit (1998), z²/(n + z²), with a cluster as one item.
    """
    n, groups = len(differences), spread.df + 1
    if not differences.any():
        z = float(special.ndtri((1 + LEVEL) / 2))
        return 0.0, Spread(z / (groups + z * z), spread.df)
    won, lost = (differences > 0).sum() + 0.5, (differences < 0).sum() + 0.5
    total = n + 2
    centre = (won - lost) / total
    variance = (won + lost - (won - lost) ** 2 / total) / total**2
    alone = clustered_stderr(differences, np.arange(n))
    if alone is not None and alone.stderr > 0:
        variance *= max(1.0, (spread.stderr / alone.stderr) ** 2)
    return float(centre), Spread(float(variance) ** 0.5, spread.df)


def _paired_p(
    differences: Floats, labels: NDArray[np.int64], spread: Spread, binary: bool
) -> float:
    if binary and len(labels) == spread.df + 1:
        return mcnemar_exact(int((differences < 0).sum()), int((differences > 0).sum()))
    if spread.stderr == 0:
        return 1.0 if differences[0] == 0 else float(2.0**-spread.df)
    return float(2 * special.stdtr(spread.df, -abs(differences.mean()) / spread.stderr))
