"""How two trainers are compared at equal KL (benchmarks/learning/frontier.py)."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from learning.frontier import (
    Pair,
    Verdict,
    at_end,
    at_equal_kl,
    over_seeds_and_prompts,
    rises,
    within_kl,
)


def policy(kl: float, score: float, gold: float = 0.0) -> Verdict:
    """The same for both of two prompts, but for half a point of score."""
    return Verdict([score - 0.5, score + 0.5], [kl, kl], [gold, gold])


def best(curve: list[Verdict], kl: float) -> tuple[float, float]:
    found = within_kl(curve, kl)
    return float(found["score"].mean()), float(found["gold"].mean())


RUN = [policy(0, -2, 0.2), policy(1, 2, 0.4), policy(4, 6, 0.3), policy(2.25, 5, 0.6)]


@pytest.mark.parametrize(
    ("kl", "want"),
    [
        (0.25, (0, 0.3)),  # half way from SFT, in √KL
        (1, (2, 0.4)),
        (2.25, (5, 0.6)),  # better than when it first came by, which is 4
        (3.0625, (5.5, 0.45)),  # the second time, on the way back
        (4, (6, 0.3)),  # by score, whatever the gold measure
        (9, (6, 0.3)),
    ],
)
def test_the_best_that_a_run_came_by_within_a_kl(kl, want):
    assert best(RUN, kl) == pytest.approx(want)


def test_prompts_stay_apart():
    assert within_kl(RUN, 0.25)["score"].tolist() == [-0.5, 0.5]


def test_both_are_compared_where_both_have_been():
    short = [policy(0, -2, 0.2), policy(1, 3, 0.5)]
    found = at_equal_kl([Pair(RUN, short)] * 2, "score", 1.0)
    assert found["per_seed"] == [{"ours": 2.0, "trl": 3.0, "kl": 1.0}] * 2
    assert found["value"] == -1
    half = at_equal_kl([Pair(RUN, short)] * 2, "gold", 0.25)
    assert half["per_seed"] == [{"ours": 0.3, "trl": 0.35, "kl": 0.25}] * 2


def test_at_the_end_kl_is_paid_for():
    found = at_end([Pair(RUN, RUN[:3])] * 2, "objective")
    assert found["per_seed"] == [{"ours": 4.4375, "trl": 5.0}] * 2  # 5 - 2.25 / 4, 6 - 4 / 4


def test_what_a_run_gained_is_that_of_its_last_policy():
    found = rises(Pair(RUN, RUN[:3]))
    assert (found["ours"]["score"]["value"], found["trl"]["score"]["value"]) == (7, 8)
    assert (found["ours"]["kl"], found["trl"]["kl"]) == (2.25, 4)


def test_seeds_that_differ_widen_the_interval_as_prompts_do():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(6, 400))
    widths = [
        np.diff(over_seeds_and_prompts(noise + effect)["ci95"]).item()
        for effect in (0, 0.5 * rng.normal(size=(6, 1)), 5 * rng.normal(size=(1, 400)))
    ]
    assert widths[1] > 3 * widths[0] and widths[2] > 3 * widths[0]


@pytest.mark.parametrize(("seeds", "prompts"), [(0.0, 0.0), (0.3, 0.0), (0.1, 1.0)])
def test_intervals_over_seeds_and_prompts_cover(seeds, prompts):
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(500):
        effects = seeds * rng.normal(size=(6, 1)) + prompts * rng.normal(size=(1, 100))
        low, high = over_seeds_and_prompts(effects + rng.normal(size=(6, 100)))["ci95"]
        inside.append(low <= 0 <= high)
    assert np.mean(inside) >= 0.93
