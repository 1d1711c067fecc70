"""Numbers in files: strict JSON, nothing invented, other schemas refused; comparing; gates."""

import json
import math
from typing import Any

import pytest

from align.errors import EvalError, GateError
from align.evaluation import aggregate, compare, embedded, results
from align.evaluation.gates import check_gates, parse_gate
from align.evaluation.responses import Responses
from align.evaluation.results import Metric


def metric(value: float | None, **other: Any) -> dict[str, Any]:
    made = Metric(value, 0.1, (0.2, 0.4), 9, True, None, "a share")
    return results.as_json(made) | other


def test_nan_never_reaches_a_file(tmp_path) -> None:
    results.write_json(tmp_path / "a.json", {"x": math.nan, "y": [math.inf, 1.5], "z": (1, None)})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "x": None,
        "y": [None, 1.5],
        "z": [1, None],
    }
    assert results.number(-0.0) == 0
    assert results.number(math.nan) is None


def test_arrows_only_where_a_direction_is_better() -> None:
    assert results.direction(metric(0.3)) == "↑"
    assert results.direction(metric(0.3, higher_is_better=False)) == "↓"
    assert results.direction(metric(0.3, higher_is_better=None)) == ""
    assert results.direction(metric(0.3, higher_is_better=None, ideal=0.5)) == "ideal 0.5"


def test_results_of_another_schema_are_refused(tmp_path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(EvalError, match=r"no results.json at"):
        results.read_results(tmp_path)
    file.write_text('{"schema": 7}')
    with pytest.raises(EvalError, match="has schema 7, this version reads 1"):
        results.read_results(tmp_path)
    file.write_text("[1]")
    with pytest.raises(EvalError, match="has schema None"):
        results.read_results(file)
    file.write_text("{")
    with pytest.raises(EvalError, match="is not JSON"):
        results.read_results(file)


def evaluation(folder, scores: dict[str, float | None], **entry: Any):
    rows = [
        {"task": "t", "id": i, "cluster": i, "scores": {"accuracy": s}} for i, s in scores.items()
    ]
    results.write_jsonl(folder / "items" / "t.jsonl", rows)
    task = {
        "version": 1,
        "data_sha256": "d",
        "num_fewshot": 0,
        "metrics": {"accuracy": metric(0.5)},
    }
    results.write_json(
        folder / "results.json",
        {"schema": 1, "model": {"name": folder.name}, "tasks": {"t": task | entry}},
    )
    return folder


def test_comparing_pairs_the_items(tmp_path) -> None:
    a = evaluation(tmp_path / "a", {str(i): float(i % 2) for i in range(40)})
    b = evaluation(tmp_path / "b", {str(i): 1.0 for i in range(40)})
    found = compare.compare(a, b / "results.json")
    entry = found["tasks"]["t"]["metrics"]["accuracy"]
    assert (entry["delta"], entry["n"]) == (0.5, 40)
    assert entry["p_holm"] < 0.001
    assert "+0.500" in compare.table(found)


def test_checkpoints_of_a_run_are_compared_by_their_evaluations(tmp_path) -> None:
    for stage in ("sft", "ppo"):
        evaluation(tmp_path / "run" / "eval" / stage, {"1": 1.0, "2": 0.0})
        (tmp_path / "run" / stage).mkdir()
    found = compare.compare(tmp_path / "run" / "sft", tmp_path / "run" / "ppo")
    assert (found["a"], found["b"]) == ("sft", "ppo")


def test_other_items_are_refused_with_what_differs(tmp_path) -> None:
    a = evaluation(tmp_path / "a", {"1": 1.0, "2": 0.0})
    b = evaluation(tmp_path / "b", {"1": 1.0, "3": 0.0})
    with pytest.raises(
        EvalError, match=r"1 are only in the first \(2\) and 1 only in the second \(3\)"
    ):
        compare.compare(a, b)
    c = evaluation(tmp_path / "c", {"1": 1.0, "2": 0.0}, data_sha256="other")
    with pytest.raises(EvalError, match=r"data_sha256 is d in .* and other in"):
        compare.compare(a, c)
    (b / "items" / "t.jsonl").unlink()
    with pytest.raises(EvalError, match="no item scores at"):
        compare.compare(a, b)


def test_gates() -> None:
    found = {"tasks": {"t": {"main": "accuracy", "metrics": {"accuracy": metric(0.61)}}}}
    tax = {
        "stages": ["base", "sft", "ppo"],
        "pairs": {"base->ppo": {"t": {"tax": 0.02}}, "base->sft": {"t": {"tax": 0.5}}},
        "overall": {"base->ppo": {"tax": 0.004}, "base->sft": {"tax": 0.5}},
    }
    assert parse_gate("tax<1.0pp").bound == pytest.approx(0.01)
    held = check_gates(found, tax, [parse_gate("tax<1.0pp"), parse_gate("t>=60%")])
    assert len(held) == 2
    with pytest.raises(GateError, match=r"tax.t<1pp: the tax from base to ppo is 0.0200"):
        check_gates(found, tax, [parse_gate("tax.t<1pp")])
    with pytest.raises(GateError, match=r"t.accuracy is 0.6100"):
        check_gates(found, None, [parse_gate("t.accuracy < 0.5")])
    with pytest.raises(EvalError, match="needs a tax, but none was measured"):
        check_gates(found, None, [parse_gate("tax<1pp")])
    with pytest.raises(EvalError, match="speaks of 'u'; measured: t"):
        check_gates(found, None, [parse_gate("u<1")])
    with pytest.raises(EvalError, match="'tax=1' is not a gate"):
        parse_gate("tax=1")


def test_cached_answers_survive_a_kill_and_don_t_mix(tmp_path) -> None:
    cache = Responses(tmp_path, {"weights": "a"})
    cache.add_partial("generate", ("x", "{}", 0), "text")
    cache.add_partial("loglikelihood", ("x", "y"), (-1.25, True))
    cache.close()
    with cache.path.open("a") as file:
        file.write('{"k": "abc", "v": [1')
    again = Responses(tmp_path, {"weights": "a"})
    assert again.get("generate", ("x", "{}", 0)) == "text"
    assert again.get("loglikelihood", ("x", "y")) == [-1.25, True]
    assert again.get("generate", ("x", "{}", 1)) is None
    again.add_partial("generate", ("x", "{}", 1), "other")
    again.close()
    third = Responses(tmp_path, {"weights": "a"})
    assert third.get("generate", ("x", "{}", 1)) == "other"
    third.close()
    stranger = Responses(tmp_path, {"weights": "b"})
    assert stranger.get("generate", ("x", "{}", 0)) is None
    stranger.close()


# ---------------------------------------------------------------- scorers of the embedded world


def test_sums_are_read_strictly_and_leniently() -> None:
    doc = {"answer": "12", "steps": 3}
    right = embedded.sums(doc, ["5 + 7 = 12. The answer is 12."])
    assert (right["exact_match"], right["flexible_match"], right["extraction_failure"]) == (1, 1, 0)
    assert right["exact_match_3step"] == right["exact_match_multistep"] == 1
    loose = embedded.sums(doc, ["5 + 7 = 12"])
    assert (loose["exact_match"], loose["flexible_match"]) == (0, 1)
    assert (loose["extraction_disagreement"], loose["extraction_failure"]) == (1, 1)
    assert embedded.sums(doc, [""])["flexible_match"] == 0
    assert "exact_match_multistep" not in embedded.sums(doc | {"steps": 1}, [""])


def test_ties_get_part_of_the_credit() -> None:
    assert embedded.credit([-1.0, -1.0, -2.0], 0) == 0.5
    assert embedded.credit([-1.0, -2.0], 1) == 0
    assert embedded.preferences({}, [(0.3, False), (0.3, False)])["accuracy"] == 0.5


def test_bias_is_a_probability_between_the_two_wordings() -> None:
    pair = embedded.bias(
        {"kind": "pronoun"}, [(math.log(0.3), False), (math.log(0.1), False), (-9, False)]
    )
    assert pair["stereotype_rate"] == pytest.approx(0.75)
    assert pair["stereotype_preference"] == 1
    even = embedded.bias({"kind": "pronoun"}, [(-2000.0, False), (-2000.0, False), (-9.0, False)])
    assert (even["stereotype_rate"], even["stereotype_preference"]) == (0.5, 0.5)
    who = embedded.bias({"kind": "who"}, [(-3.0, False), (-3.0, False), (-1.0, False)])
    assert who == {"who_stereotype_rate": 0.5, "who_neutral_rate": 1.0}


def test_expected_maximum_of_fewer_samples() -> None:
    scores = [0.1, 0.4, 0.9, 0.2]
    assert embedded.expected_max(scores, 4) == pytest.approx(0.9)
    assert embedded.expected_max(scores, 1) == pytest.approx(0.4)
    pairs = [max(a, b) for i, a in enumerate(scores) for b in scores[i + 1 :]]
    assert embedded.expected_max(scores, 2) == pytest.approx(sum(pairs) / len(pairs))


def test_floors_of_multiple_choice() -> None:
    rows = [
        {"gold": i % 2, "loglikelihoods": [0.0, 1.0] if i % 2 else [1.0, 0.0]} for i in range(200)
    ]
    choices = [["yes", "no"]] * 200
    floors = aggregate.floors_of(None, rows, choices, seed=0)
    assert floors["random"] == 0.5
    assert floors["longest_answer"] == 0.5
    assert 0.4 < floors["permuted_labels"] < 0.6
    assert aggregate.floors_of(None, [rows[0]] * 5, choices[:5], seed=0) == {}


@pytest.mark.parametrize("gone", ["tasks", "model", "tasks.own.metrics"])
def test_a_results_file_with_a_part_missing_says_which(tmp_path, gone) -> None:
    entry = {"metrics": {}, "n": 1, "data_sha256": "0"}
    found = {"schema": 1, "model": {}, "created": "", "missing": [], "tasks": {"own": entry}}
    (entry if "metrics" in gone else found).pop(gone.rpartition(".")[2])
    results.write_json(tmp_path / "results.json", found)
    with pytest.raises(EvalError, match=rf"lacks {gone}: it was cut or edited; evaluate"):
        results.read_results(tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch) -> None:
    results.write_json(tmp_path / "results.json", {"a": 1})

    def full(path, text, **_):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        results.write_json(tmp_path / "results.json", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert '"a": 1' in (tmp_path / "results.json").read_text()


def test_toxicity_by_two_classifiers_is_refused(tmp_path) -> None:
    for name in ("original", "unbiased"):
        entry = {"version": 1, "data_sha256": "0", "num_fewshot": 0, "metrics": {}}
        entry["judges"] = {"toxicity classifier": {"error": None, "reason": "x"}}
        settings = {"toxicity_classifier": {"name": name, "sha256": name}}
        found = {"schema": 1, "model": {}, "settings": settings, "tasks": {"bold": entry}}
        results.write_json(tmp_path / name / "results.json", found)
    with pytest.raises(EvalError, match="by two classifiers, original and unbiased; evaluate"):
        compare.compare(tmp_path / "original", tmp_path / "unbiased")


def test_a_damaged_item_file_is_told_with_its_line(tmp_path) -> None:
    for name in ("a", "b"):
        entry = {"version": 1, "data_sha256": "0", "num_fewshot": 0, "metrics": {}}
        found = {"schema": 1, "model": {}, "tasks": {"own": entry}}
        results.write_json(tmp_path / name / "results.json", found)
        results.write_jsonl(tmp_path / name / "items" / "own.jsonl", [{"id": "1"}])
    with pytest.raises(EvalError, match=r"own\.jsonl line 1 is no scored item; evaluate again"):
        compare.compare(tmp_path / "a", tmp_path / "b")
