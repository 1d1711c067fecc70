"""Published tasks from end to end on rows of our own in the columns of the published sets."""

import math
import zipfile
from pathlib import Path
from typing import ClassVar

import nltk
import own_rows
import pytest
from evaluation_helpers import save

from align.evaluation import aggregate, hub_datasets, results
from align.evaluation.run import evaluate
from align.evaluation.scorers import bbh, bold, refusal

CHOSEN = ["hellaswag", "stereoset", "winogender", "bbq", "crows_pairs", "winobias"]
GENERATED = ["bbh", "bold", "bbq_generate", "simplesafetytests", "donotanswer"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    own_rows.cards(tmp_path, monkeypatch)
    monkeypatch.delenv("ALIGN_DATA", raising=False)
    return save(tmp_path / "model", context=2048)


def check_numbers(entry: dict) -> None:
    assert entry["n"] and entry["metrics"]
    for metric in entry["metrics"].values():
        assert metric["value"] is None or math.isfinite(metric["value"])
        assert metric["meaning"]
    assert entry["metrics"][entry["main"]]["value"] is not None


@pytest.mark.parametrize("name", CHOSEN)
def test_a_task_with_choices_runs_whole_and_prints_its_floors(name: str, model: str) -> None:
    found = evaluate(model, [name], log=lambda line: None)
    entry = found["tasks"][name]
    check_numbers(entry)
    assert set(entry["floors"]) == {"random", "longest_answer", "permuted_labels"}
    assert entry["floors_note"] is None
    assert "  floors: random " in results.table(found)
    expected = {"hellaswag": 0.25, "crows_pairs": 0.5, "bbq": 0.0, "stereoset": 35.0}
    if name in expected:
        wide = {"stereoset": 15.0}.get(name, 0.2)
        assert entry["floors"]["random"] == pytest.approx(expected[name], abs=wide)


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_task_runs_whole_and_says_why_it_has_no_floor(name: str, model: str) -> None:
    found = evaluate(model, [name], log=lambda line: None)
    entry = found["tasks"][name]
    if name != "bbq_generate":  # a random model says none of the answers
        check_numbers(entry)
    assert entry["floors"] == {}
    assert "floors: none: the answers are generated" in results.table(found)


def test_hellaswag_is_prepared_as_the_standard_prompt_is(model: str) -> None:
    from datasets import Dataset
    from lm_eval.tasks.hellaswag.utils import process_docs

    rows = list(hub_datasets.hellaswag()["validation"])
    assert (
        rows[0]["query"]
        == "Cooking soup: How to cook. A woman stands in a kitchen. She takes a pot"
    )
    for ours, theirs in zip(
        rows, process_docs(Dataset.from_list(own_rows.ROWS["hellaswag"])), strict=True
    ):
        assert (ours["query"], ours["choices"]) == (theirs["query"], theirs["choices"])
        assert ours["label"] == theirs["gold"]


def test_gotcha_sentences_are_those_of_the_part_of_that_name(model: str) -> None:
    rows = hub_datasets.winogender()["test"]
    marks = {(r["occupation"], r["gender"]): r["gotcha"] for r in rows}
    assert marks["nurse", "male"] and marks["baker", "female"]
    assert marks["nurse", "female"] is marks["baker", "male"] is False
    assert marks["nurse", "neutral"] is None
    found = evaluate(model, ["winogender"], log=lambda line: None)
    assert found["tasks"]["winogender"]["metrics"]["gotcha_gap"]["n"] == 12


def test_stereoset_in_both_forms_of_a_nested_column(model: str) -> None:
    row = own_rows.ROWS["stereoset"][0]
    nested = row["sentences"]
    listed = [
        dict(zip(nested, values, strict=True)) for values in zip(*nested.values(), strict=True)
    ]
    item = hub_datasets._stereoset_item(row)
    assert item == hub_datasets._stereoset_item({**row, "sentences": listed})
    assert item["choices"][0] == "The baker was loud."


def test_bbh_shows_three_worked_examples_of_the_items_own_subject(model: str) -> None:
    from align.evaluation import suites

    file = suites.TaskFile("bbh", suites.task_files()["bbh"])
    task = suites.build(file, chat=False, num_fewshot=None)
    assert len(hub_datasets.bbh_subjects()) == 27
    doc = task.eval_docs[2]
    prompt = task.fewshot_context(doc, num_fewshot=3)
    assert doc["subject"] == "navigate"
    assert prompt.count("Q: ") == 4 and prompt.count("So the answer is ") == 3
    assert prompt.endswith("\nA: Let's think step by step.\n")
    assert doc["description"].strip() and prompt.startswith(doc["description"].strip())


@pytest.mark.parametrize(
    ("text", "target", "strict", "lenient"),
    [
        ("First. So the answer is (B).", "(B)", 1, 1),
        ("So the answer is B.", "(B)", 0, 1),
        ("the answer is (A). No: the answer is (B)", "(B)", 1, 1),
        ("So the answer is yes.", "Yes", 0, 1),
        ("It is so.\nNo", "No", 0, 1),
        ("So the answer is (C).", "(B)", 0, 0),
        ("So the answer is ] ) }.", "] ) }", 1, 1),
        ("", "Yes", 0, 0),
        ("So the answer is apple bear.", "apple bear cat", 0, 0),
    ],
)
def test_reading_an_answer(text: str, target: str, strict: float, lenient: float) -> None:
    scores = bbh.item({"answer": target}, [text])
    assert (scores["exact_match"], scores["flexible_match"]) == (strict, lenient)
    assert scores["extraction_failure"] == float("answer is" not in text)


def test_bold_without_a_lexicon_says_so(model: str) -> None:
    bold.vader.cache_clear()
    found = evaluate(model, ["bold"], log=lambda line: None)
    if bold.vader() is not None:
        pytest.skip("VADER's lexicon is on this machine")
    assert found["tasks"]["bold"]["metrics"]["sentiment"]["value"] is None
    text = results.table(found)
    assert "Not measured: VADER's lexicon is not on this machine" in results.legend([found])
    assert "sentiment lexicon error: not measured" in text
    assert "toxicity classifier error: not measured (HateCheck not here" in text


def test_bold_with_a_lexicon(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lexicon is found where nltk's downloader puts it; the words in it are ours."""
    (tmp_path / "nltk" / "sentiment").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "nltk" / "sentiment" / "vader_lexicon.zip", "w") as packed:
        words = "lovely\t3.0\t0.5\t[3]\nawful\t-3.0\t0.5\t[-3]"
        packed.writestr("vader_lexicon/vader_lexicon.txt", words)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    bold.vader.cache_clear()
    assert bold.vader() is not None
    doc = {"text": "They"}
    good, bad, plain = (
        bold.item(doc, [text]) for text in ("She was a lovely queen.", "His awful dog.", "A table.")
    )
    assert (good["sentiment_positive"], bad["sentiment_negative"], plain["sentiment"]) == (1, 1, 0)
    assert (good["female"], good["male"], bad["male"], plain["female"]) == (1, 0, 1, 0)
    assert "gender_polarity" not in plain
    assert "sentiment" not in bold.item(doc, [" "])
    found = evaluate(model, ["bold"], log=lambda line: None)["tasks"]["bold"]["metrics"]
    assert found["sentiment"]["n"] >= 20
    assert "sentiment_gap_gender" in found
    bold.vader.cache_clear()


class Pairs:
    """A task whose right choice is always the first, with a scorer of its own."""

    class config:
        metadata: ClassVar = {"main": "first"}
        metric_list: ClassVar = [{"metric": "first", "higher_is_better": True}]

    def aggregation(self):
        return {"first": None}

    def higher_is_better(self):
        return {"first": True}

    def process_results(self, doc, results):
        return {"first": float(results[0][0] > results[1][0])}


def test_floors_go_through_the_tasks_own_scorer() -> None:
    """The first choice is the longer one in three of four items, and the model always takes it."""
    choices = [("longer", "short") if i % 4 else ("short", "longer") for i in range(200)]
    rows = [
        {
            "id": str(i),
            "cluster": str(i // 2),
            "loglikelihoods": [-1.0, -2.0],
            "unscored_reason": None,
            "scores": {"first": 1.0},
            "meta": {},
        }
        for i in range(200)
    ]
    found = aggregate.floors_by_scorer(Pairs(), [{}] * 200, rows, choices, 0)
    assert found["random"] == pytest.approx(0.5, abs=0.05)
    assert found["longest_answer"] == 0.75
    assert found["permuted_labels"] == pytest.approx(0.5, abs=0.12)
    many = [(None, row, [1, 2]) for row in rows] * 20
    kept = aggregate._some_clusters(many)
    assert 500 < len(kept) < 1500
    for cluster in {row["cluster"] for _, row, _ in kept}:
        assert sum(row["cluster"] == cluster for _, row, _ in kept) == 40  # whole ones


def test_refusal_by_area() -> None:
    rows = [
        {
            "id": str(i),
            "cluster": str(i),
            "scores": refusal.score(text, safe=False),
            "meta": {"area": area},
        }
        for i, (text, area) in enumerate(
            [("I cannot help.", "a"), ("Sure.", "a"), ("I'm sorry, no.", "b b")]
        )
    ]
    found = refusal.harmful(rows)
    assert found["refusal"].value == pytest.approx(2 / 3)
    assert (found["refusal_a"].value, found["refusal_b_b"].value) == (0.5, 1)
    assert "over_refusal" not in found
