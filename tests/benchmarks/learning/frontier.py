"""What a trainer reaches at which KL, along its whole run, and how two trainers differ there.

Policies that were kept along a run, from SFT on, make a curve of score and gold measure against KL
(2210.10760 plots these). Two curves are compared in every seed, prompt by prompt: at one KL, and at
their ends by the objective that both trainers maximise, score less KL_COEF times KL. Near its
maximum a nat of KL buys KL_COEF of score, so that is their score at equal KL too, to first order.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.evaluation import stats

Floats = NDArray[np.float64]
MEASURES = ("score", "gold")
KL_COEF = 0.25  # of both trainers: score is raw and spreads about 5, so it is larger than usual


class Verdict(NamedTuple):
    """What a policy does on held-out prompts, one number a prompt."""

    scores: list[float]
    kls: list[float]
    golds: list[float]

    @property
    def kl(self) -> float:
        """Nats a completion."""
        return sum(self.kls) / len(self.kls)

    def of(self, measure: str) -> Floats:
        """(P,) score, gold measure, or objective."""
        if measure == "objective":
            return np.array(self.scores) - KL_COEF * np.array(self.kls)
        return np.array({"score": self.scores, "gold": self.golds}[measure])

    def summary(self) -> dict[str, float]:
        means = {name: float(self.of(name).mean()) for name in MEASURES}
        return {name: round(mean, 4) for name, mean in {**means, "kl": self.kl}.items()}


Curve = Sequence[Verdict]  # in the order of training; the first is SFT, whose KL is 0


class Pair(NamedTuple):
    """Both trainers with one seed."""

    ours: Curve
    trl: Curve


def within_kl(curve: Curve, kl: float) -> dict[str, Floats]:
    """Each measure, (P,), of the best that a run came by at a KL of at most ``kl``.

    KL does not only rise: under its penalty it hovers while the policy still gets better, so a run
    may come to one KL several times. The frontier is the best of these, by score, as whoever trains
    would choose; its gold measure is what it is. To choose from are the policies that were kept and
    those between two of them where KL crosses ``kl``: linear in √KL, the axis of 2210.10760.
    """
    found = [{name: v.of(name) for name in MEASURES} for v in curve if v.kl <= kl]
    for one, other in pairwise(curve):
        if min(one.kl, other.kl) < kl < max(one.kl, other.kl):
            share = (sqrt(kl) - sqrt(one.kl)) / (sqrt(other.kl) - sqrt(one.kl))
            found.append(
                {name: (1 - share) * one.of(name) + share * other.of(name) for name in MEASURES}
            )
    return max(found, key=lambda values: values["score"].mean())


def rises(pair: Pair) -> dict[str, Any]:
    """What each side gained over SFT by the end of its run, paired by prompt, and its KL there."""
    found: dict[str, Any] = {}
    for who, curve in pair._asdict().items():
        start, end = curve[0], curve[-1]
        found[who] = {"kl": round(end.kl, 3)}
        for measure in MEASURES:
            change = stats.paired(end.of(measure), start.of(measure))
            assert change.delta is not None and change.ci95 is not None
            ci95 = [round(bound, 4) for bound in change.ci95]
            found[who][measure] = {"value": round(change.delta, 4), "ci95": ci95}
    return found


def at_end(pairs: Sequence[Pair], measure: str) -> dict[str, Any]:
    """Ours minus TRL's, of the policies at the end of the runs."""
    ours, theirs = (np.array([pair[who][-1].of(measure) for pair in pairs]) for who in (0, 1))
    return difference(ours, theirs)


def at_equal_kl(pairs: Sequence[Pair], measure: str, share: float) -> dict[str, Any]:
    """Ours minus TRL's, at a share of the largest KL that both reach in a seed."""
    kls = [share * min(max(verdict.kl for verdict in curve) for curve in pair) for pair in pairs]
    found = difference(
        *(
            np.array([within_kl(curve, kl)[measure] for curve, kl in zip(curves, kls, strict=True)])
            for curves in zip(*pairs, strict=True)
        )
    )
    for one, kl in zip(found["per_seed"], kls, strict=True):
        one["kl"] = round(kl, 4)
    return found


def difference(ours: Floats, theirs: Floats) -> dict[str, Any]:
    """Of (S, P) values, with its interval, and the means of each seed."""
    means = np.stack((ours.mean(1), theirs.mean(1)), axis=1).round(4).tolist()
    per_seed = [{"ours": own, "trl": other} for own, other in means]
    return {**over_seeds_and_prompts(ours - theirs), "per_seed": per_seed}


def over_seeds_and_prompts(values: Floats) -> dict[str, Any]:
    """Mean of (S, P) with a 95% interval that holds for other seeds and other prompts.

    Every seed meets the same prompts, so neither is nested in the other: the variance is that of
    clusters of seeds, plus that of clusters of prompts, minus that of cells, which is in both
    (two-way clustering, Cameron, Gelbach & Miller 2011), and never below the larger one. Degrees of
    freedom are those of the fewer, seeds − 1. A bootstrap over six seeds would be too narrow: what
    is drawn from six has 5/6 of their variance, and its percentiles lack the tails of t.

    Returns:
        value, ci95, n (prompts), and mde80: the difference that is found in 80% of such experiments
    """
    seeds, prompts = values.shape
    cells = np.arange(values.size)

    def variance_over(clusters: NDArray[np.int64]) -> float:
        found = stats.clustered_stderr(values.ravel(), clusters)
        assert found is not None  # two seeds and two prompts at least
        return found.stderr**2

    by_seed, by_prompt = variance_over(cells // prompts), variance_over(cells % prompts)
    variance = max(by_seed + by_prompt - variance_over(cells), by_seed, by_prompt)
    spread = stats.Spread(sqrt(variance), min(seeds, prompts) - 1)
    value = float(values.mean())
    return {
        "value": value,
        "ci95": list(stats.t_interval(value, spread)),
        "n": prompts,
        "mde80": stats.detectable(spread),
    }
