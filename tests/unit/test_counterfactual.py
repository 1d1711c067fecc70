"""Counterfactual pairs: by hand, against the planted truth, under a limit, on our templates."""

from math import log
from pathlib import Path

import pytest
from evaluation_helpers import save

from align import paths
from align.evaluation import items
from align.evaluation.run import evaluate
from align.evaluation.scorers import counterfactual


def row(name: str, group: str, value: float | None, **meta: str) -> dict:
    scores = {} if value is None else {"likelihood": value}
    return {
        "id": f"{name}-{group}",
        "cluster": meta.pop("cluster", name),
        "scores": scores,
        "meta": {"set": name, "group": group, **meta},
    }


def test_differences_and_directions_by_hand() -> None:
    rows = [row("1", "a", -1.0), row("1", "b", -3.0), row("2", "a", -4.0), row("2", "b", -3.0)]
    found = counterfactual.metrics(rows)
    assert found["likelihood_difference"].value == pytest.approx(1.5)
    assert found["likelihood_a"].value == pytest.approx(0.5)  # (2 − 1) / 2
    assert "a minus b" in found["likelihood_a"].meaning
    assert "likelihood_b" not in found  # the same with the other sign
    assert found["likelihood_difference"].n == 2


def test_three_groups_each_against_the_others() -> None:
    rows = [row(str(i), g, v, kind="k") for i in (1, 2) for g, v in (("a", 3), ("b", 0), ("c", 0))]
    found = counterfactual.metrics(rows)
    assert found["likelihood_difference"].value == pytest.approx(2.0)  # (3 + 3 + 0) / 3
    assert found["likelihood_k_a"].value == pytest.approx(3.0)
    assert found["likelihood_k_b"].value == found["likelihood_k_c"].value == pytest.approx(-1.5)


def test_a_set_that_lacks_a_group_does_not_count() -> None:
    rows = [row("1", "a", -1.0), row("1", "b", None), row("2", "a", 0.0)]
    assert counterfactual.metrics(rows) == {}
    rows += [row("2", "b", 5.0)]
    assert counterfactual.metrics(rows)["likelihood_difference"].value == 5
    assert counterfactual.metrics(rows)["likelihood_difference"].ci95 is None  # one set


def test_a_set_with_two_of_three_groups_does_not_count_either() -> None:
    rows = [row("1", g, v) for g, v in (("a", 1), ("b", 0), ("c", 0))]
    rows += [row("2", "a", 9), row("2", "b", 0), row("2", "c", None)]
    found = counterfactual.metrics(rows)
    assert found["likelihood_difference"].value == pytest.approx(2 / 3)
    assert found["likelihood_difference"].n == 1


def test_clusters_widen_the_interval() -> None:
    sets = [(str(i), 3.0 * (i % 2)) for i in range(20)]

    def spread(clusters: int) -> float:
        rows = []
        for name, far in sets:
            cluster = str(int(name) % clusters)
            rows += [row(name, "a", far, cluster=cluster), row(name, "b", 0, cluster=cluster)]
        return counterfactual.metrics(rows)["likelihood_difference"].stderr

    assert spread(2) > 2 * spread(20)


def test_the_start_of_an_answer_is_not_counted() -> None:
    assert counterfactual.likelihood({}, [(-7.0, False)]) == {"likelihood": -7}
    assert counterfactual.likelihood({}, [(-5.0, False), (-7.0, False)]) == {"likelihood": -2}


def test_a_limit_draws_whole_sets() -> None:
    sets = [str(i // 3) for i in range(30)]
    for limit in (1, 3, 7, 29):
        drawn = items.draw_sets(sets, limit, seed=0)
        names = {sets[i] for i in drawn}
        assert drawn == [i for i in range(30) if sets[i] in names]
        assert len(drawn) == max(3, limit // 3 * 3)
    assert items.draw_sets(sets, None, 0) == items.draw_sets(sets, 30, 0) == list(range(30))
    assert items.draw_sets(sets, 7, 0) != items.draw_sets(sets, 7, 1)


def test_the_base_has_what_was_planted() -> None:
    """P(she | she-occupation) / P(she | he-occupation) = 0.85 / 0.15 in the corpus."""
    found = evaluate(
        str(paths.QUICKSTART_BASE),
        ["quickstart_counterfactual", "quickstart_counterfactual_generate"],
        log=lambda line: None,
    )["tasks"]
    planted = log(0.85 / 0.15)
    metrics = found["quickstart_counterfactual"]["metrics"]
    for pronoun, sign in (("she", -1), ("he", 1)):
        direction = metrics[f"likelihood_{pronoun}_he_occupation"]
        assert direction["value"] == pytest.approx(sign * planted, abs=0.25)
        assert direction["n"] == 40
    assert metrics["likelihood_difference_they"]["value"] < 0.2
    said = found["quickstart_counterfactual_generate"]
    assert said["metrics"]["gender_polarity_he_occupation"]["value"] < -0.5
    assert said["metrics"]["toxicity_difference"]["value"] < 0.1
    assert set(said["judges"]) == {"toxicity classifier", "refusal detector"}


def test_our_own_templates_on_any_model(tmp_path: Path) -> None:
    for chat in (False, True):
        model = save(tmp_path / f"model-{chat}", chat=chat)
        found = evaluate(
            model,
            ["counterfactual", "counterfactual_generate"],
            limit=30,
            log=lambda line: None,
        )
        likelihood, said = found["tasks"].values()
        assert likelihood["unscored"] == 0
        assert likelihood["metrics"]["likelihood_difference"]["value"] > 0
        assert said["metrics"]["toxicity"]["n"] >= 20
        assert found["warnings"] and "(counterfactual_generate)" in found["warnings"][0]
