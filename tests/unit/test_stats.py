"""Intervals cover the truth, clusters count, nothing unscored becomes 0."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from align.evaluation import stats

DRAWS = 400


def covered(estimates, truth):
    return np.mean([low <= truth <= high for low, high in (e.ci95 for e in estimates)])


@pytest.mark.parametrize("rate", [0.03, 0.2, 0.5, 0.97])
def test_wilson_covers_the_true_rate(rate):
    rng = np.random.default_rng(0)
    draws = [stats.mean_with_ci(rng.random(120) < rate) for _ in range(DRAWS)]
    assert 0.92 <= covered(draws, rate) <= 0.99


@pytest.mark.parametrize("kind", ["t", "bootstrap"])
def test_intervals_cover_the_true_mean(kind):
    rng = np.random.default_rng(1)
    number = DRAWS if kind == "t" else 150
    draws = [stats.mean_with_ci(rng.beta(2, 3, 60), kind=kind) for _ in range(number)]
    assert 0.90 <= covered(draws, 0.4) <= 0.99


def clustered_draw(rng, groups=30, size=8):
    """Items of a cluster share an effect: only clusters are independent."""
    effect = rng.normal(0, 1, groups).repeat(size)
    return effect + rng.normal(0, 0.3, groups * size), np.arange(groups).repeat(size)


def test_clusters_restore_coverage_that_plain_stderr_loses():
    rng = np.random.default_rng(2)
    draws = [clustered_draw(rng) for _ in range(DRAWS)]
    with_clusters = [stats.mean_with_ci(values, list(labels)) for values, labels in draws]
    without = [stats.mean_with_ci(values) for values, _ in draws]
    assert 0.92 <= covered(with_clusters, 0) <= 0.98
    assert covered(without, 0) < 0.7


def test_clustered_binary_scores_cover():
    rng = np.random.default_rng(3)
    draws = []
    for _ in range(DRAWS):
        rates = rng.beta(2, 2, 40).repeat(6)
        draws.append(stats.mean_with_ci(rng.random(240) < rates, list(np.arange(40).repeat(6))))
    assert 0.92 <= covered(draws, 0.5) <= 0.99


def test_single_item_clusters_equal_no_clusters():
    values = [0.1, 0.7, 0.4, 0.9]
    assert stats.mean_with_ci(values, list("abcd")) == stats.mean_with_ci(values)


def test_stderr_is_the_textbook_one():
    values = np.array([0.0, 1.0, 2.0, 5.0])
    estimate = stats.mean_with_ci(values)
    assert estimate.stderr == pytest.approx(values.std(ddof=1) / 2)
    assert estimate.ci95 == pytest.approx(
        (2 - 3.18245 * estimate.stderr, 2 + 3.18245 * estimate.stderr), abs=1e-4
    )


def test_bootstrap_stderr_does_not_shrink_with_the_number_of_draws():
    values = np.random.default_rng(4).normal(size=200)
    plain = stats.mean_with_ci(values, kind="t").stderr
    assert stats.mean_with_ci(values, kind="bootstrap").stderr == pytest.approx(plain, rel=0.1)


def test_unscored_items_are_dropped_and_counted():
    estimate = stats.mean_with_ci([1.0, None, float("nan"), 0.0, 1.0])
    assert (estimate.n, estimate.unscored) == (3, 2)
    assert estimate.value == pytest.approx(2 / 3)


@pytest.mark.parametrize("values", [[], [None], [float("nan")]])
def test_nothing_scored_has_no_value(values):
    assert stats.mean_with_ci(values) == (None, None, None, 0, len(values))


def test_one_item_has_no_stderr():
    assert stats.mean_with_ci([0.5]) == (0.5, None, None, 1, 0)
    assert stats.mean_with_ci([0.0, 1.0], ["same", "same"]).stderr is None
    assert stats.paired([1.0], [0.0])[:4] == (1.0, None, None, None)


def test_all_correct_is_not_certain():
    low, high = stats.mean_with_ci([1.0] * 20).ci95
    assert 0.8 < low < 0.9
    assert high == 1.0


def test_wilson_refuses_scores_that_are_not_binary():
    with pytest.raises(ValueError, match="0 and 1"):
        stats.mean_with_ci([0.5, 0.2], kind="wilson")


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        stats.paired([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="2 scores and 1 clusters"):
        stats.mean_with_ci([1, 0], ["a"])


@pytest.mark.parametrize("lost", [0.0, 0.05, 0.3])
def test_paired_binary_intervals_cover(lost):
    rng = np.random.default_rng(5)
    inside = []
    for _ in range(DRAWS):
        base = rng.random(150) < 0.6
        after = np.where(base, rng.random(150) >= lost, rng.random(150) < 0.02)
        low, high = stats.paired(after, base).ci95
        inside.append(low <= -0.6 * lost + 0.4 * 0.02 <= high)
    assert np.mean(inside) >= 0.92


def test_no_change_still_has_a_width():
    pair = stats.paired([1, 0] * 50, [1, 0] * 50)
    assert pair.delta == 0
    assert pair.p == 1
    assert pair.ci95[1] == pytest.approx(-pair.ci95[0])
    assert 0.01 < pair.ci95[1] < 0.04
    assert pair.mde80 > 0


def test_pairing_is_sharper_than_two_separate_intervals():
    rng = np.random.default_rng(6)
    base = rng.normal(size=200)
    after = base - 0.1 + rng.normal(0, 0.1, 200)
    pair = stats.paired(after, base)
    apart = math.hypot(stats.mean_with_ci(base).stderr, stats.mean_with_ci(after).stderr)
    assert pair.stderr < apart / 5
    assert pair.p < 1e-6


def test_mde_is_found_four_times_in_five():
    rng = np.random.default_rng(7)
    true = stats.detectable(stats.Spread(1 / math.sqrt(100), 99))
    found = [stats.paired(rng.normal(true, 1, 100), np.zeros(100)).p < 0.05 for _ in range(DRAWS)]
    assert 0.74 <= np.mean(found) <= 0.86


def test_needed_n_gives_that_power():
    assert stats.needed_n(0.28, 0.1, 100) == pytest.approx(100, abs=2)
    assert stats.needed_n(0.14, 0.1, 100) == pytest.approx(401, abs=4)
    assert stats.needed_n(0.0, 0.1, 100) is None


def test_holm_worked_example():
    assert stats.holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_and_keeps_order(ps):
    corrected = stats.holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, corrected, strict=True))
    order = sorted(range(len(ps)), key=lambda i: (ps[i], i))
    assert [corrected[i] for i in order] == sorted(corrected)


def test_mcnemar_by_hand():
    assert stats.mcnemar_exact(0, 0) == 1.0
    assert stats.mcnemar_exact(0, 5) == pytest.approx(2 * 0.5**5)
    assert stats.mcnemar_exact(3, 3) == 1.0


def test_randomisation_test_level_and_exactness():
    assert stats.randomisation_test([1.0] * 6, [0.0] * 6) == pytest.approx(2 / 64)
    rng = np.random.default_rng(8)
    noise = [rng.normal(size=(2, 25)) for _ in range(60)]
    hits = [stats.randomisation_test(a, b, draws=299) <= 0.05 for a, b in noise]
    assert np.mean(hits) < 0.15


def test_jackknife_of_a_product_covers():
    rng = np.random.default_rng(9)
    inside = []
    for _ in range(DRAWS):
        first, second = rng.random((40, 6)) < 0.3, rng.random((40, 6)) < 0.8
        sums = np.stack([np.full(40, 6.0), first.sum(1), second.sum(1)], 1)
        low, high = stats.smooth(sums, lambda t: (1 - t[1] / t[0]) * (2 * t[2] / t[0] - 1)).ci95
        inside.append(low <= 0.7 * 0.6 <= high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_jackknife_of_a_mean_is_its_clustered_stderr():
    values, labels = clustered_draw(np.random.default_rng(10))
    sums = np.stack([np.bincount(labels), np.bincount(labels, weights=values)], 1).astype(float)
    jackknife = stats.smooth(sums, lambda t: t[1] / t[0])
    assert jackknife.stderr == pytest.approx(stats.mean_with_ci(values, list(labels)).stderr)


def test_signs_are_twice_a_share_minus_one():
    shares = stats.mean_with_ci([1, 1, 0, 1, 0], list("aabbc"), kind="wilson")
    signs = stats.mean_with_ci([1, 1, -1, 1, -1], list("aabbc"), kind="signs")
    assert signs.value == pytest.approx(2 * shares.value - 1)
    assert signs.stderr == pytest.approx(2 * shares.stderr)
    assert signs.ci95 == pytest.approx([2 * end - 1 for end in shares.ci95])
    assert stats.mean_with_ci([1.0], kind="signs") == stats.Estimate(1.0, None, None, 1)
    assert stats.mean_with_ci([None], kind="signs").value is None


def test_a_jackknife_without_spread_is_no_certainty():
    sums = np.ones((20, 2))
    free = stats.smooth(sums, lambda t: t[1] / t[0])
    assert free.ci95 == (1.0, 1.0)
    low, high = stats.smooth(sums, lambda t: t[1] / t[0], limits=(-1.0, 1.0)).ci95
    assert low == pytest.approx(1 - 2 * 3.8415 / (20 + 3.8415), abs=1e-4)
    assert high == 1.0


@pytest.mark.parametrize(("right", "n"), [(0, 20), (7, 20), (20, 20), (1, 3), (299, 300)])
def test_wilson_is_scipys(right, n):
    expected = scipy_stats.binomtest(right, n).proportion_ci(method="wilson")
    got = stats.mean_with_ci([1.0] * right + [0.0] * (n - right)).ci95
    assert got == pytest.approx((expected.low, expected.high))


def test_a_paired_mean_is_scipys():
    rng = np.random.default_rng(8)
    a = rng.normal(size=30)
    b = a + rng.normal(0.3, 1, 30)
    got, expected = stats.paired(b, a), scipy_stats.ttest_rel(b, a)
    assert got.p == pytest.approx(expected.pvalue)
    assert got.ci95 == pytest.approx(expected.confidence_interval())


@pytest.mark.parametrize("effect", [0.3, 0.9])
def test_needed_n_has_the_power_that_it_promises(effect):
    rng = np.random.default_rng(9)
    n = stats.needed_n(effect, 0.1, 100)
    draws = rng.normal(effect, 1, (4000, n))
    power = (scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert 0.77 <= power <= 0.86
