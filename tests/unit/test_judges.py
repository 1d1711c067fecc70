"""The judges' own errors: counted by hand on small data, printed beside the numbers, kept."""

import json
from pathlib import Path

import pytest

from align import paths
from align.evaluation import judges, results, toxicity
from align.evaluation.run import evaluate

LABELLED = judges.Labelled(
    "own words",
    ["a", "b", "c", "d", "e"],
    [True, True, True, False, False],
    ["1", "1", "2", "3", "4"],
    ["x", "x", "x", "y", "y"],
)


def test_error_rates_by_hand() -> None:
    found = judges.error_rates([True, False, False, True, None], LABELLED)
    assert (found["error"]["value"], found["error"]["n"]) == (0.75, 4)  # the fifth is unscored
    assert found["false_negative_rate"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert (found["false_positive_rate"]["value"], found["false_positive_rate"]["n"]) == (1, 1)
    assert found["false_positive_rate"]["ci95"] is None  # one text has no interval
    assert found["by_group"]["x"]["value"] == found["false_negative_rate"]["value"]
    low, high = found["error"]["ci95"]
    assert low < 0.75 < high <= 1


def test_a_judge_that_is_always_right_has_an_upper_bound() -> None:
    found = judges.error_rates(LABELLED.labels, LABELLED)
    assert found["error"]["value"] == 0 < found["error"]["ci95"][1]


def test_the_embedded_classifier_on_texts_that_it_has_not_seen() -> None:
    labelled = judges.embedded_texts()
    assert 500 < len(labelled.texts) < judges.EMBEDDED_TEXTS  # some are in training as well
    assert set(labelled.groups) == {"harmless", "brush_off", "insult"}
    found = judges.toxicity_error(toxicity.load_classifier("quickstart"), embedded=True)
    assert found["error"]["value"] < 0.02
    assert found["error"]["n"] == len(labelled.texts)


def test_an_error_is_measured_once_and_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(judges, "_known", {})
    classifier = toxicity.load_classifier("quickstart")
    first = judges.toxicity_error(classifier, embedded=True, folder=tmp_path)
    (file,) = tmp_path.glob("judge-*.json")
    monkeypatch.setattr(judges, "_known", {})

    def scores(texts):
        raise AssertionError("asked again")

    monkeypatch.setattr(classifier, "scores", scores)
    assert judges.toxicity_error(classifier, embedded=True, folder=tmp_path) == first
    monkeypatch.setattr(judges, "_known", {})
    classifier.sha256 = "0" * 64  # other weights
    with pytest.raises(AssertionError, match="asked again"):
        judges.toxicity_error(classifier, embedded=True, folder=tmp_path)
    assert json.loads(file.read_text()) == first


def test_where_labelled_texts_are_not_here_it_says_how_to_get_them(monkeypatch) -> None:
    monkeypatch.delenv("ALIGN_DATA", raising=False)
    classifier = toxicity.load_classifier("quickstart")
    line = results.judge_line(
        "toxicity classifier", judges.toxicity_error(classifier, embedded=False)
    )
    assert line.startswith("toxicity classifier error: not measured (HateCheck not here: ")
    assert "https://github.com/paul-rottger/hatecheck-data" in line
    line = results.judge_line("refusal detector", judges.refusal_error())
    assert "not measured (XSTest's labelled completions not here: get" in line


@pytest.mark.data
def test_the_embedded_classifier_fails_on_hatecheck_and_says_so(align_data) -> None:
    found = judges.toxicity_error(toxicity.load_classifier("quickstart"), embedded=False)
    assert found["error"]["n"] == 3728
    assert len(found["by_group"]) == 29
    assert found["false_negative_rate"]["value"] > 0.7
    low, high = found["error"]["ci95"]
    independent = 1.96 * (0.63 * 0.37 / 3728) ** 0.5
    assert (high - low) / 2 > 1.5 * independent  # clustered by template


@pytest.mark.data
def test_the_refusal_detector_against_people(align_data) -> None:
    found = judges.refusal_error()
    assert found["error"]["n"] == 3 * 450
    assert found["error"]["value"] == pytest.approx(0.1104, abs=1e-3)
    assert results.judge_line("refusal detector", found).startswith(
        "refusal detector error: 0.110 [0.094, 0.129] of 1350 texts (XSTest's released completions)"
    )


def test_the_error_stands_beside_the_numbers(tmp_path: Path) -> None:
    found = evaluate(
        str(paths.QUICKSTART_BASE),
        ["quickstart_toxicity", "quickstart_facts"],
        output=tmp_path,
        limit=4,
        log=lambda line: None,
    )
    beside = found["tasks"]["quickstart_toxicity"]["judges"]["toxicity classifier"]
    assert "by_group" not in beside
    pinned = found["settings"]["toxicity_classifier"]
    assert pinned["error"][beside["data"]]["by_group"]["insult"]["n"] > 100
    assert found["tasks"]["quickstart_facts"]["judges"] == {}
    lines = results.table(found).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("quickstart_toxicity"))
    assert lines[at + 1].startswith("  toxicity classifier error: 0.0")
    assert results.read_results(tmp_path)["tasks"] == found["tasks"]
