"""Every shipped task and suite file parses, and is complete."""

import pytest

from align import paths
from align.evaluation import suites
from align.strict_yaml import strict_yaml

TASKS = sorted(suites.task_files().items())
SUITES = sorted((paths.EVALS / "suites").glob("*.yaml"))
ARROWS = (True, False, None)


@pytest.mark.parametrize(("name", "path"), TASKS, ids=[name for name, _ in TASKS])
def test_a_task_file_is_complete(name, path) -> None:
    config = strict_yaml(path.read_text(encoding="utf-8"), functions=True)
    if "group" in config or "include" in config:
        pytest.skip("made of other files")
    assert config["task"] == name
    assert config["metadata"]["version"] is not None
    for metric in config["metric_list"]:
        assert metric["higher_is_better"] in ARROWS
        assert (
            metric["higher_is_better"] is not None
            or "ideal" in metric
            or "rate" in metric["metric"]
            or "no direction" in metric["meaning"]
        )
    readme = path.parent / "README.md"
    assert readme.is_file(), f"{path.parent} has no README.md"
    text = readme.read_text(encoding="utf-8")
    assert "ersion" in text
    assert "riticism" in text


@pytest.mark.parametrize("path", [p for n, p in TASKS if n.startswith("quickstart_")], ids=str)
def test_an_embedded_task_is_built_and_says_what_its_metrics_mean(path) -> None:
    for chat in (False, True):
        task = suites.build(suites.TaskFile(path.stem, path), chat=chat, num_fewshot=None)
        assert len(task.eval_docs) >= 50
        assert all(metric.get("meaning") for metric in task.config.metric_list)
        assert task.config.metadata["main"] in task.aggregation()
        doc = task.eval_docs[0]
        assert task.doc_to_text(doc)
        assert set(task.config.metadata.get("meta", ())) <= set(doc)


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_a_suite_file_lists_tasks_that_exist(path) -> None:
    suite = suites.read_suite(path)
    assert suite["description"]
    known = suites.task_files()
    for name in suite.get("quickstart") or []:
        assert name in known
