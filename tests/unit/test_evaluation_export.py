"""Results in other projects' formats: read by lm-eval's own tools, complete for Every Eval Ever."""

import json
import re
from typing import Any

import pytest
from evaluation_helpers import save
from lm_eval.utils import make_table

from align.errors import EvalError
from align.evaluation import export
from align.evaluation.run import evaluate

FILE = re.compile(
    r"data/[^/]+/[^/]+/[^/]+/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-.*"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    model = save(tmp_path_factory.mktemp("model"))
    output = tmp_path_factory.mktemp("out")
    tasks = ["quickstart_facts", "quickstart_bias"]
    evaluate(model, tasks, output=output, limit=6, log=lambda line: None)
    return output


def test_lm_eval_reads_what_we_write_in_its_layout(folder) -> None:
    (path,) = export.export(folder, ["lm-eval"])
    found = json.loads(path.read_text())
    ours = json.loads((folder / "results.json").read_text())["tasks"]["quickstart_facts"]
    table = make_table(found)
    accuracy = ours["metrics"]["accuracy"]
    assert "quickstart_facts" in table and "quickstart_bias" in table
    assert re.search(rf"\|accuracy +\|↑ +\|{accuracy['value']:.4f}\|±", table)
    assert found["results"]["quickstart_facts"]["accuracy_stderr,none"] == accuracy["stderr"]
    assert found["n-samples"]["quickstart_facts"] == {"original": 6, "effective": 6}
    assert found["versions"]["quickstart_facts"] == ours["version"]
    assert found["higher_is_better"]["quickstart_bias"]["stereotype_rate"] is None


def test_lm_eval_itself_writes_the_keys_that_we_write(folder, tmp_path) -> None:
    """Its own tracker saves a result of its own; ours has no key that it doesn't know."""
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.result_schema import EvalResults

    EvaluationTracker(output_path=str(tmp_path)).save_results_aggregated({"results": {}})
    (written,) = tmp_path.rglob("results_*.json")
    known = {*json.loads(written.read_text()), *EvalResults.__annotations__, "n-shot", "n-samples"}
    ours = set(export.as_lm_eval(json.loads((folder / "results.json").read_text())))
    logged = {"git_hash", "date", "transformers_version", "lm_eval_version"}  # its add_env_info
    assert ours - known - logged == {"align_version"}


def test_a_metric_without_value_or_stderr(folder) -> None:
    found = json.loads((folder / "results.json").read_text())
    metrics = found["tasks"]["quickstart_facts"]["metrics"]
    metrics["accuracy"] |= {"stderr": None, "ci95": None}
    metrics["never"] = metrics["accuracy"] | {"value": None}
    row = export.as_lm_eval(found)["results"]["quickstart_facts"]
    assert row["accuracy_stderr,none"] == "N/A"
    assert "never,none" not in row
    (result,) = export.as_every_eval_ever(found, "quickstart_facts")["evaluation_results"]
    assert result["score_details"]["uncertainty"] == {"num_samples": 6}


def test_every_eval_ever_gets_one_record_a_task(folder) -> None:
    paths = export.export(folder, ["every-eval-ever", "every-eval-ever"])
    assert len(paths) == 2
    for path in paths:
        assert FILE.fullmatch(path.relative_to(folder / "every-eval-ever").as_posix())
    facts, bias = (json.loads(path.read_text()) for path in paths)
    required = {
        *("schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata"),
        *("model_info", "eval_library", "evaluation_results"),
    }
    assert required <= set(facts) <= required | {"evaluation_timestamp"}
    assert facts["schema_version"] == "0.3.0"
    for field in ("source_type", "source_organization_name", "evaluator_relationship"):
        assert facts["source_metadata"][field]
    assert {"deployment_type", "model_availability"} <= set(
        facts["model_info"]["additional_details"]
    )
    (result,) = facts["evaluation_results"]
    assert result["metric_config"]["lower_is_better"] is False
    assert result["score_details"]["uncertainty"]["confidence_interval"]["confidence_level"] == 0.95
    assert_details_are_text(facts)
    names = {r["metric_config"]["metric_name"]: r for r in bias["evaluation_results"]}
    distance = names["stereotype_rate_distance_from_0.5"]
    assert distance["metric_config"]["lower_is_better"] is True
    raw = float(distance["score_details"]["details"]["value"])
    assert distance["score_details"]["score"] == pytest.approx(abs(raw - 0.5))


def test_a_metric_without_direction_is_left_out_by_name(folder) -> None:
    found = json.loads((folder / "results.json").read_text())
    metric = found["tasks"]["quickstart_facts"]["metrics"]["accuracy"]
    metric["higher_is_better"] = None
    record = export.as_every_eval_ever(found, "quickstart_facts")
    assert record["evaluation_results"] == []
    assert record["source_metadata"]["additional_details"]["metrics_left_out"] == "accuracy"


def test_results_of_another_schema_are_not_exported(tmp_path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 7}')
    with pytest.raises(EvalError, match="has schema 7, this version reads 1"):
        export.export(tmp_path, ["lm-eval"])


def test_a_model_is_named_by_its_hub_id_or_as_local() -> None:
    assert export._model_id({"model": {"name": "owner/model"}}) == "owner/model"
    assert export._model_id({"model": {"name": "/a/b/runs/x/ppo"}}) == "local/x-ppo"
    assert export._model_id({"model": {"name": "quickstart-base"}}) == "local/quickstart-base"


def assert_details_are_text(value: Any) -> None:
    """`additional_details` and `details` hold nothing but text, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("additional_details", "details"):
                assert all(isinstance(text, str) for text in inner.values())
            assert_details_are_text(inner)
    elif isinstance(value, list):
        for inner in value:
            assert_details_are_text(inner)
