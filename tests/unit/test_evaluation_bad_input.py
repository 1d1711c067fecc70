"""`align eval` and `align compare` with wrong input: what is said, and the exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_helpers import save
from test_evaluation_run import TASK, docs, own_task

from align import cli, paths
from align.errors import run_main
from align.evaluation import suites
from align.strict_yaml import strict_yaml

UNKNOWN_KIND = b'{"model_type": "no-such-kind", "architectures": ["OddForCausalLM"]}'


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("model"))


def align(capsys: Any, *words: object) -> tuple[int, str, str]:
    """(exit code, stdout, last line of stderr) of a command."""
    capsys.readouterr()
    code = 0
    try:
        run_main(lambda: cli.main([str(word) for word in words]))
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out, (said.err.strip().splitlines() or [""])[-1]


def broken_model(model: str, folder: Path, file: str, content: bytes) -> Path:
    folder.mkdir()
    for path in Path(model).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("biass", "no suite, task or YAML file 'biass'; did you mean bias"),
        ("quickstart_fact", "did you mean quickstart_facts"),
        ("nowhere.yaml", "no task or suite file at nowhere.yaml; give an existing YAML file"),
    ],
)
def test_an_unknown_suite_or_task(model, capsys, name, said) -> None:
    code, out, line = align(capsys, "eval", "--model", model, "--suite", name)
    assert (code, out) == (2, "")
    assert said in line


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b'{"model_type": "llama"}', "this needs a language model"),
        ("config.json", UNKNOWN_KIND, "no-such-kind"),
        ("model.safetensors", b"not weights", "model.safetensors"),
    ],
)
def test_a_model_that_can_not_be_loaded(model, tmp_path, capsys, file, content, said) -> None:
    folder = broken_model(model, tmp_path / "broken", file, content)
    task = own_task(tmp_path / "t", docs(2))
    code, out, line = align(capsys, "eval", "--model", folder, "--suite", task)
    assert (code, out) == (2, "")
    assert said in line
    code, out, line = align(capsys, "eval", "--model", tmp_path / "gone", "--suite", task)
    assert (code, out) == (2, "")
    assert "no checkpoint at" in line


def test_missing_data(model, tmp_path, capsys) -> None:
    task = own_task(tmp_path / "t", docs(2))
    (tmp_path / "t" / "items.jsonl").unlink()
    here = own_task(tmp_path / "here", docs(2), name="here")
    asked = ("eval", "--model", model, "--suite", task, "--suite", here)
    code, out, line = align(capsys, *asked, "--output", tmp_path / "o")
    assert (code, out) == (2, "")
    assert "own: no item file at" in line
    code, out, _ = align(capsys, *asked, "--output", tmp_path / "o", "--allow-missing")
    assert code == 0
    assert "MISSING own: own: no item file at" in out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TASK + "doc_to_txt: x\n", "doc_to_txt is not a key of an lm-eval task; did you mean doc_"),
        (TASK + "metadata: [\n", "can't be read as a task"),
        (TASK.replace("embedded.facts", "embedded.fact"), "can't be read as a task"),
        (TASK + "task: again\n", "the key 'task' stands twice"),
        (TASK.replace("higher_is_better", "higer_is_better"), "did you mean higher_is_better?"),
        (TASK.replace("aggregation: mean", "aggregation: maen"), "no aggregation 'maen'; did you"),
        (TASK.replace("main:", "mian:"), "mian is read by nobody; did you mean main?"),
        (TASK.replace("main: accuracy", "main: acuracy"), "is not in metric_list; did you mean ac"),
        (TASK.replace("test_split: test", "test_split: tst"), "test_split is 'tst', but its data"),
        (TASK.replace("custom_dataset:", "process_docs:"), "names no data; give it a dataset_path"),
    ],
)
def test_a_task_file_with_a_mistake(model, tmp_path, capsys, text, said) -> None:
    task = own_task(tmp_path / "t", docs(2), text=text)
    code, out, line = align(capsys, "eval", "--model", model, "--suite", task)
    assert (code, out) == (2, "")
    assert said in line


def plain(n: int, broken: int) -> list[dict[str, Any]]:
    """Items of which the last ones have no gold."""
    return [*docs(n), *({**d, "id": f"b{i}", "gold": None} for i, d in enumerate(docs(broken)))]


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("tax<1pp", "needs a tax, but none is measured; give --baseline"),
        ("mmul>0.2", "speaks of 'mmul'; measured will be: own"),
    ],
)
def test_a_gate_on_what_is_not_measured_is_refused_before_the_work(
    model, tmp_path, capsys, gate, said
) -> None:
    task, output = own_task(tmp_path / "t", docs(2)), tmp_path / "o"
    code, out, line = align(
        capsys, "eval", "--model", model, "--suite", task, "--gate", gate, "--output", output
    )
    assert (code, out) == (2, "")
    assert said in line
    assert not output.exists()


def test_an_output_that_can_not_be_is_told_before_the_work(model, tmp_path, capsys) -> None:
    task, file = own_task(tmp_path / "t", docs(2)), tmp_path / "file"
    file.touch()
    asked = ["eval", "--model", model, "--suite", task, "--output"]
    for output in (file, file / "below", "/proc/nowhere"):
        code, out, line = align(capsys, *asked, output)
        assert (code, out) == (2, "")
        assert f"results can't go to {output}:" in line


def test_a_suite_file_finds_the_tasks_beside_it(model, tmp_path, capsys) -> None:
    own_task(tmp_path, docs(2))
    (tmp_path / "mine.yaml").write_text("tasks: [own]\n", encoding="utf-8")
    code, out, _ = align(
        capsys, "eval", "--model", model, "--suite", tmp_path / "mine.yaml", "--output", tmp_path
    )
    assert code == 0
    assert "own (n = 2" in out


def test_more_worked_examples_than_there_are(model, tmp_path, capsys) -> None:
    task = own_task(tmp_path / "t", docs(3))
    asked = ["eval", "--model", model, "--suite", task, "--output", tmp_path / "o"]
    code, out, line = align(capsys, *asked, "--num-fewshot", "99")
    assert (code, out) == (2, "")
    assert "worked examples, 99 are asked for; lower --num-fewshot" in line


def test_items_without_gold(model, tmp_path, capsys) -> None:
    text = TASK.replace("process_results: !function align.evaluation.embedded.facts\n", "")
    text = text.replace("metric: accuracy", "metric: acc").replace("main: accuracy", "main: acc")
    few = own_task(tmp_path / "few", plain(30, 1), text=text)
    code, out, _ = align(
        capsys, "eval", "--model", model, "--suite", few, "--output", tmp_path / "a"
    )
    assert code == 0
    assert "n = 31, 0-shot, 1 unscored" in out
    last = (tmp_path / "a/items/own.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["unscored_reason"] == "no gold: None is none of the 3 choices"
    many = own_task(tmp_path / "many", plain(8, 2), text=text)
    code, out, line = align(
        capsys, "eval", "--model", model, "--suite", many, "--output", tmp_path / "b"
    )
    assert (code, out) == (1, "")
    assert "2 of 10 items of own are unscored (more than 5%), mostly: no gold: None" in line


def test_a_scorer_that_raises(model, tmp_path, capsys) -> None:
    text = TASK.replace("embedded.facts", "embedded.sums")  # reads fields that aren't there
    task = own_task(tmp_path / "t", docs(4), text=text)
    code, _, line = align(
        capsys, "eval", "--model", model, "--suite", task, "--output", tmp_path / "o"
    )
    assert code == 1
    assert "4 of 4 items of own are unscored (more than 5%), mostly: KeyError" in line
    entry = json.loads((tmp_path / "o/results.json").read_text())["tasks"]["own"]
    assert sum(entry["unscored_reasons"].values()) == entry["unscored"] == 4


def test_no_item_and_one_item(model, tmp_path, capsys) -> None:
    none = own_task(tmp_path / "none", [])
    code, _, line = align(capsys, "eval", "--model", model, "--suite", none)
    assert code == 2
    assert "own has no items; its test split is empty" in line
    one = own_task(tmp_path / "one", docs(1))
    code, out, _ = align(
        capsys, "eval", "--model", model, "--suite", one, "--output", tmp_path / "o"
    )
    assert code == 0
    metric = json.loads((tmp_path / "o/results.json").read_text())["tasks"]["own"]["metrics"]
    assert (metric["accuracy"]["stderr"], metric["accuracy"]["ci95"]) == (None, None)
    assert f"  accuracy  {metric['accuracy']['value']:.3f} " in out
    code, _, line = align(capsys, "eval", "--model", model, "--suite", one, "--limit", "0")
    assert code == 2
    assert "give 1 or more" in line


def test_a_baseline_with_other_items(model, tmp_path, capsys) -> None:
    task = own_task(tmp_path / "t", docs(20))
    for seed in (0, 1):
        where = tmp_path / f"o{seed}"
        asked = ("--model", model, "--suite", task, "--limit", 5, "--seed", seed)
        assert align(capsys, "eval", *asked, "--output", where)[0] == 0
    code, out, line = align(capsys, "compare", tmp_path / "o0", tmp_path / "o1")
    assert (code, out) == (2, "")
    assert "are only in the first" in line and "evaluate both with the same --limit" in line


def test_results_of_another_schema(tmp_path, capsys) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text('{"schema": 9}')
    code, out, line = align(capsys, "compare", tmp_path / "a", tmp_path / "b")
    assert (code, out) == (2, "")
    assert "has schema 9, this version reads 1; evaluate the model again" in line


def test_a_format_that_is_not_known(model, capsys) -> None:
    asked = ("--model", model, "--suite", "bias", "--export", "helm")
    code, _, line = align(capsys, "eval", *asked)
    assert code == 2
    assert "lm-eval" in line and "every-eval-ever" in line


def test_a_sweep_takes_neither_processes_nor_exports(model, capsys) -> None:
    asked = ("--suite", "tax", "--average-with", model, "--baseline", model, "--processes", 2)
    code, _, line = align(capsys, "eval", "--model", model, *asked)
    assert code == 2
    assert "--average-with takes neither --processes nor --export" in line


# ---------------------------------------------------------------- every metric is explained


def test_the_output_ends_with_a_sentence_for_each_metric(model, tmp_path, capsys) -> None:
    asked = ("--suite", "quickstart_bias", "--suite", "quickstart_facts", "--limit", 4)
    code, out, _ = align(capsys, "eval", "--model", model, *asked, "--output", tmp_path)
    assert code == 0
    explained = out.split("What the numbers say")[1].splitlines()[1:]
    tasks = json.loads((tmp_path / "results.json").read_text())["tasks"].values()
    names = [name for entry in tasks for name in entry["metrics"]]
    assert [line.split(":")[0].strip() for line in explained] == names
    assert all(line.endswith(("better.", "the better.")) for line in explained)
    ideal = next(line for line in explained if line.startswith("  stereotype_rate:"))
    assert ideal.endswith("The nearer to 0.5 the better.")


@pytest.mark.parametrize("path", sorted(suites.task_files().values()), ids=lambda p: p.stem)
def test_every_metric_of_every_task_has_its_sentence_and_direction(path) -> None:
    config = strict_yaml(path.read_text("utf-8"), functions=True)
    for metric in config.get("metric_list", ()):
        assert len(str(metric.get("meaning", "")).split()) > 3, metric["metric"]
        assert "higher_is_better" in metric, metric["metric"]


def test_every_metric_that_a_scorer_makes_has_its_sentence() -> None:
    import importlib

    from align.evaluation.scorers.common import Meaning

    found: list[Meaning] = []
    for path in sorted((paths.PACKAGE / "evaluation" / "scorers").glob("*.py")):
        for value in vars(
            importlib.import_module(f"align.evaluation.scorers.{path.stem}")
        ).values():
            inner = value.values() if isinstance(value, dict) else [value]
            found += [meaning for meaning in inner if isinstance(meaning, Meaning)]
    assert len(found) > 20
    assert all(len(meaning.text.split()) > 3 for meaning in found)
