"""Suites, names and YAML files, and what a wrong one says."""

import pytest

from align import paths
from align.errors import EvalError
from align.evaluation import suites


def test_suites_of_the_embedded_world() -> None:
    def names(*wanted: str) -> list[str]:
        return [task.name for task in suites.resolve(wanted, "quickstart")]

    capabilities = ["quickstart_sums", "quickstart_sums_fewshot", "quickstart_facts"]
    assert names("benchmarks") == capabilities
    assert names("bias", "toxicity") == [
        "quickstart_bias",
        "quickstart_counterfactual",
        "quickstart_toxicity",
    ]
    assert names("reward") == ["quickstart_preferences"]
    assert names("tax", "quickstart_facts") == capabilities


def test_a_suite_without_embedded_tasks_says_so() -> None:
    with pytest.raises(EvalError, match="the suite safety has no quickstart tasks"):
        suites.resolve(["safety"], "quickstart")


@pytest.mark.parametrize(
    ("name", "near"),
    [("biass", "bias"), ("quickstart_sum", "quickstart_sums"), ("toxcity", "toxicity")],
)
def test_an_unknown_name_gets_the_nearest(name, near) -> None:
    with pytest.raises(
        EvalError, match=f"no suite, task or YAML file '{name}'; did you mean.*{near}"
    ):
        suites.resolve([name], "quickstart")


def test_own_task_and_suite_files(tmp_path) -> None:
    (tmp_path / "own.yaml").write_text("task: my_own\ndoc_to_text: x\n")
    (tmp_path / "mine.yaml").write_text("tasks: [my_own]\nquickstart: [my_own, quickstart_facts]\n")
    by_path = suites.resolve([str(tmp_path / "own.yaml")], "published")
    assert [task.name for task in by_path] == ["my_own"]
    with_folder = suites.resolve(["mine"], "quickstart", tmp_path)
    assert [task.name for task in with_folder] == ["my_own", "quickstart_facts"]
    assert [t.name for t in suites.resolve(["my_own"], "published", tmp_path)] == ["my_own"]
    beside = suites.resolve([str(tmp_path / "mine.yaml")], "published")
    assert [task.name for task in beside] == ["my_own"]
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "mine.yaml").rename(alone / "mine.yaml")
    with pytest.raises(EvalError, match="lists 'my_own', but there is no such task"):
        suites.resolve([str(alone / "mine.yaml")], "published")


def test_files_that_are_no_tasks(tmp_path) -> None:
    with pytest.raises(EvalError, match="no task or suite file at"):
        suites.resolve([str(tmp_path / "gone.yaml")], "published")
    odd = tmp_path / "odd.yaml"
    odd.write_text("taks: wrong\n")
    with pytest.raises(EvalError, match=r"neither a task .* nor a suite: it holds \['taks'\]"):
        suites.resolve([str(odd)], "published")
    with pytest.raises(EvalError, match="is not a folder"):
        suites.resolve(["bias"], "quickstart", tmp_path / "gone")


def test_a_misspelled_key_is_named_with_the_right_one(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("task: own\ndoc_to_txt: x\n")
    with pytest.raises(EvalError, match=r"doc_to_txt is not a key .*; did you mean doc_to_text"):
        suites.build(suites.TaskFile("own", path), chat=False, num_fewshot=None)


def test_a_function_that_does_not_exist_is_named(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("task: own\nprocess_results: !function align.evaluation.embedded.nothing\n")
    with pytest.raises(EvalError, match=r"own.yaml can't be read as a task: .*nothing"):
        suites.build(suites.TaskFile("own", path), chat=False, num_fewshot=None)


def test_a_group_is_its_tasks(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("task: a\n")
    (tmp_path / "g.yaml").write_text("group: g\ntask: [a, quickstart_facts]\n")
    found = suites.resolve(["g"], "published", tmp_path)
    assert [task.name for task in found] == ["a", "quickstart_facts"]


def test_a_task_that_fixes_zero_shots_keeps_them() -> None:
    files = suites.task_files()
    fixed = suites.TaskFile("quickstart_bias", files["quickstart_bias"])
    assert suites.build(fixed, chat=False, num_fewshot=4).config.num_fewshot == 0
    free = suites.TaskFile("quickstart_sums", files["quickstart_sums"])
    assert suites.build(free, chat=False, num_fewshot=4).config.num_fewshot == 4


def test_what_differs_for_a_chat_template_is_in_the_task() -> None:
    file = suites.TaskFile("quickstart_sums", paths.EVALS / "quickstart_sums/quickstart_sums.yaml")
    plain, chat = (suites.build(file, chat=c, num_fewshot=None) for c in (False, True))
    doc = plain.eval_docs[0]
    assert plain.doc_to_text(doc) == f"Question: {doc['question']}\nAnswer:"
    assert chat.doc_to_text(doc) == doc["question"]
