"""evaluate(): the contract of results.json, resuming, and what a user's mistakes say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_helpers import save

from align import paths
from align.errors import CheckpointError, EvalError, RunError
from align.evaluation import items, results, run, subject
from align.evaluation.ancestry import Ancestry, ancestry, contaminated
from align.evaluation.responses import Responses

TASK = """\
task: {name}
custom_dataset: !function align.evaluation.embedded.load_items
test_split: test
fewshot_split: fewshot
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
process_results: !function align.evaluation.embedded.facts
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
    meaning: share of right answers
metadata:
  version: 3
  main: accuracy
"""
QUIET: dict[str, Any] = {"log": lambda line: None}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("model"))


def own_task(folder: Path, docs: list[dict[str, Any]], name: str = "own", text: str = TASK) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("items", "fewshot"):
        rows = "".join(json.dumps(doc) + "\n" for doc in docs)
        (folder / f"{file}.jsonl").write_text(rows)
    path = folder / f"{name}.yaml"
    path.write_text(text.format(name=name))
    return str(path)


def docs(n: int) -> list[dict[str, Any]]:
    return [
        {"id": f"d{i}", "question": f"What is {i}?", "choices": [" a", " bc", " d"], "gold": i % 3}
        for i in range(n)
    ]


def without_times(found: dict[str, Any]) -> str:
    text = json.dumps(found, sort_keys=True)
    found = json.loads(text)
    found.pop("created")
    for entry in found["tasks"].values():
        entry.pop("wall_seconds")
    return json.dumps(found, sort_keys=True)


def test_a_limit_of_one_task_wins_over_the_limit_of_all(model, tmp_path) -> None:
    tasks = [own_task(tmp_path / name, docs(9), name) for name in ("one", "other")]
    found = run.evaluate(model, tasks, limit=5, limits={"other": 2}, **QUIET)
    assert {name: task["n"] for name, task in found["tasks"].items()} == {"one": 5, "other": 2}
    assert found["settings"]["limits"] == {"other": 2}
    with pytest.raises(EvalError, match="othr is not evaluated; did you mean other"):
        run.evaluate(model, tasks, limits={"othr": 2}, **QUIET)


def test_a_choice_longer_than_the_context_leaves_its_item_unscored(model, tmp_path) -> None:
    long = {"id": "long", "question": "Who?", "choices": [" a", " b c" * 3000], "gold": 0}
    task = own_task(tmp_path / "t", [*docs(30), long])
    entry = run.evaluate(model, [task], **QUIET)["tasks"]["own"]
    assert (entry["n"], entry["unscored"], entry["metrics"]["accuracy"]["n"]) == (31, 1, 30)
    (reason,) = entry["unscored_reasons"]
    assert "a choice has" in reason and "tokens, more than the model's context of" in reason


def test_the_contract(model, tmp_path) -> None:
    task = own_task(tmp_path / "t", docs(12))
    found = run.evaluate(model, [task], output=tmp_path / "out", **QUIET)
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["schema"] == 1
    assert found["missing"] == []
    assert found["model"]["name"] == model
    assert len(found["model"]["weights_sha256"]) == 64
    entry = found["tasks"]["own"]
    assert (entry["version"], entry["n"], entry["unscored"], entry["num_fewshot"]) == (3, 12, 0, 0)
    assert len(entry["data_sha256"]) == 64
    metric = entry["metrics"]["accuracy"]
    assert 0 <= metric["ci95"][0] <= metric["value"] <= metric["ci95"][1] <= 1
    assert (metric["n"], metric["higher_is_better"], metric["ideal"]) == (12, True, None)
    assert metric["meaning"] == "share of right answers"
    assert entry["floors"]["random"] == pytest.approx(1 / 3, abs=1e-5)
    rows = [json.loads(x) for x in (tmp_path / "out/items/own.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"d{i}" for i in range(12)]
    assert set(rows[0]) == {
        *("task", "id", "cluster", "prompt", "loglikelihoods", "gold", "scores"),
        *("unscored_reason", "meta"),
    }
    mean = sum(row["scores"]["accuracy"] for row in rows) / 12
    assert metric["value"] == pytest.approx(mean, abs=1e-6)


def test_two_runs_and_two_batch_sizes_give_the_same(model, tmp_path) -> None:
    task = own_task(tmp_path / "t", docs(40))
    first, second, third = (
        run.evaluate(model, [task], batch_size=size, **QUIET) for size in ("auto", "auto", 1)
    )
    assert without_times(first) == without_times(second)
    assert without_times(first) == without_times(third)


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_items(model, tmp_path, n) -> None:
    task = own_task(tmp_path / "t", docs(n))
    metric = run.evaluate(model, [task], **QUIET)["tasks"]["own"]["metrics"]["accuracy"]
    assert metric["n"] == n
    assert (metric["stderr"] is None) == (metric["ci95"] is None) == (n == 1)


def test_no_items(model, tmp_path) -> None:
    with pytest.raises(EvalError, match="own has no items; its test split is empty"):
        run.evaluate(model, [own_task(tmp_path / "t", [])], **QUIET)
    with pytest.raises(EvalError, match="--limit is 0; it must be at least 1"):
        run.evaluate(model, [own_task(tmp_path / "u", docs(2))], limit=0, **QUIET)


def test_a_limit_draws_items_with_the_seed(model, tmp_path) -> None:
    task = own_task(tmp_path / "t", docs(20))
    drawn = []
    for seed in (0, 0, 1):
        run.evaluate(model, [task], limit=5, seed=seed, output=tmp_path / "o", **QUIET)
        text = (tmp_path / "o" / "items" / "own.jsonl").read_text()
        drawn.append([json.loads(line)["id"] for line in text.splitlines()])
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != [f"d{i}" for i in range(5)]
    assert items.draw(3, 5, 0) == [0, 1, 2]


def test_a_killed_evaluation_goes_on_and_gives_the_same(model, tmp_path, monkeypatch) -> None:
    task = own_task(tmp_path / "t", docs(10))
    whole = run.evaluate(model, [task], output=tmp_path / "whole", batch_size=1, **QUIET)
    asked = []
    forward = subject.PrefixLM.forward

    def killed(self, *args, **kwargs):
        asked.append(1)
        if len(asked) == 20:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(subject.PrefixLM, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(model, [task], output=tmp_path / "o", batch_size=1, **QUIET)
    assert not (tmp_path / "o" / "results.json").exists()
    (cache,) = (tmp_path / "o" / ".cache").glob("*.jsonl")
    before = len(cache.read_text().splitlines())
    assert 0 < before < 30
    cache.write_text(cache.read_text()[:-5])  # killed in the middle of a line
    resumed = run.evaluate(model, [task], output=tmp_path / "o", batch_size=1, **QUIET)
    assert without_times(resumed) == without_times(whole)
    asked.clear()
    run.evaluate(model, [task], output=tmp_path / "o", batch_size=1, **QUIET)
    assert asked == []


def test_a_second_model_never_sees_the_first_ones_answers(model, tmp_path) -> None:
    task = own_task(tmp_path / "t", docs(8))
    other = save(tmp_path / "other", seed=1)
    alone = run.evaluate(other, [task], **QUIET)
    run.evaluate(model, [task], output=tmp_path / "o", **QUIET)
    after = run.evaluate(other, [task], output=tmp_path / "o", **QUIET)
    assert without_times(alone) == without_times(after)
    assert len(list((tmp_path / "o" / ".cache").glob("*.jsonl"))) == 2


def test_broken_items_are_unscored_and_too_many_of_them_fail_the_run(model, tmp_path) -> None:
    good, broken = docs(30), docs(2)
    broken[0] |= {"id": "no gold", "gold": None}
    few = own_task(tmp_path / "few", [*good, broken[0]])
    found = run.evaluate(model, [few], output=tmp_path / "a", **QUIET)["tasks"]["own"]
    assert (found["n"], found["unscored"], found["metrics"]["accuracy"]["n"]) == (31, 1, 30)
    rows = [json.loads(x) for x in (tmp_path / "a/items/own.jsonl").read_text().splitlines()]
    assert rows[-1]["unscored_reason"]
    assert rows[-1]["scores"] == {}
    many = own_task(tmp_path / "many", [*good[:5], broken[0]])
    with pytest.raises(RunError, match=r"1 of 6 items of own are unscored \(more than 5%\)"):
        run.evaluate(model, [many], output=tmp_path / "b", **QUIET)
    assert (tmp_path / "b" / "results.json").is_file()


def test_a_scorer_that_never_works_leaves_numbers_empty_not_zero(model, tmp_path) -> None:
    text = TASK.replace("embedded.facts", "embedded.sums")  # reads fields that aren't there
    task = own_task(tmp_path / "t", docs(4), text=text)
    with pytest.raises(RunError, match="KeyError"):
        run.evaluate(model, [task], output=tmp_path / "o", **QUIET)
    entry = json.loads((tmp_path / "o" / "results.json").read_text())["tasks"]["own"]
    assert entry["unscored"] == 4
    assert entry["metrics"]["accuracy"]["value"] is None
    assert "not measured" in results.table({"model": {}, "tasks": {"own": entry}, "missing": []})


def test_missing_data_stop_the_run_or_are_listed(model, tmp_path) -> None:
    here = own_task(tmp_path / "here", docs(3), name="here")
    gone = own_task(tmp_path / "gone", docs(3), name="gone")
    (tmp_path / "gone" / "items.jsonl").unlink()
    with pytest.raises(EvalError, match=r"gone: no item file at .*items.jsonl"):
        run.evaluate(model, [here, gone], **QUIET)
    said: list[str] = []
    found = run.evaluate(model, [here, gone], allow_missing=True, log=said.append)
    assert list(found["tasks"]) == ["here"]
    assert found["missing"][0]["task"] == "gone"
    assert any(line.startswith("MISSING gone") for line in said)
    assert "MISSING gone" in results.table(found)


def test_hub_data_that_are_not_here_are_named(model, tmp_path) -> None:
    text = TASK.replace(
        "custom_dataset: !function align.evaluation.embedded.load_items",
        "dataset_path: nobody/nothing-of-the-kind",
    )
    task = own_task(tmp_path / "t", docs(1), text=text)
    with pytest.raises(EvalError, match="own needs the Hub dataset nobody/nothing-of-the-kind"):
        run.evaluate(model, [task], **QUIET)


def test_a_model_that_is_not_there(tmp_path) -> None:
    task = own_task(tmp_path / "t", docs(1))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        run.evaluate(str(tmp_path / "nothing"), [task], **QUIET)


def test_few_shot_and_chat_template(tmp_path) -> None:
    chat = save(tmp_path / "chat", chat=True)
    task = own_task(tmp_path / "t", docs(3))
    run.evaluate(chat, [task], num_fewshot=1, output=tmp_path / "o", **QUIET)
    rows = [json.loads(x) for x in (tmp_path / "o/items/own.jsonl").read_text().splitlines()]
    prompt = rows[0]["prompt"]
    assert prompt.count("User: What is") == 2
    assert prompt.count("<eos>") == 1
    assert prompt.endswith("Assistant:\n")
    entry = results.read_results(tmp_path / "o")["tasks"]["own"]
    assert entry["num_fewshot"] == 1


def test_embedded_tasks_run_on_any_model(model, tmp_path) -> None:
    names = ["quickstart_sums", "quickstart_facts", "quickstart_bias"]
    found = run.evaluate(model, names, limit=6, output=tmp_path / "o", **QUIET)
    assert list(found["tasks"]) == names
    for entry in found["tasks"].values():
        assert entry["main"] in entry["metrics"]
        assert all(metric["meaning"] for metric in entry["metrics"].values())
    assert found["tasks"]["quickstart_bias"]["metrics"]["stereotype_rate"]["ideal"] == 0.5
    text = results.table(found)
    assert "ideal 0.5" in text
    assert "NaN" not in (tmp_path / "o" / "results.json").read_text()


def test_the_world_of_a_model_is_where_its_lineage_starts(tmp_path, monkeypatch) -> None:
    base = Path(save(tmp_path / "base"))
    monkeypatch.setattr(paths, "QUICKSTART_BASE", base)
    corpus = {"parent": None, "data": [{"card": "quickstart-corpus"}]}
    (base / "lineage.json").write_text(json.dumps(corpus))
    stranger = Path(save(tmp_path / "stranger", seed=3))
    child = Path(save(tmp_path / "run" / "sft", seed=4))
    data = [{"card": "quickstart_instructions"}]
    lineage = {"parent": {"path": "quickstart-base"}, "data": data}
    (child / "lineage.json").write_text(json.dumps(lineage))
    grandchild = Path(save(tmp_path / "run" / "ppo", seed=5))
    moved = {"parent": {"path": "/somewhere/else/sft", "weights_sha256": "0"}, "data": []}
    (grandchild / "lineage.json").write_text(json.dumps(moved))
    worlds = [ancestry(str(m)).world for m in (base, child, grandchild, stranger)]
    assert worlds == ["quickstart", "quickstart", "quickstart", "published"]
    assert len(ancestry(str(grandchild)).lineages) == 3


def test_contamination_is_known_only_where_all_training_data_are(monkeypatch) -> None:
    def known(*cards: str, whole: bool = True) -> Ancestry:
        return Ancestry([{"data": [{"card": card} for card in cards]}], "quickstart", whole)

    assert contaminated("quickstart_sums", known("quickstart_instructions")) == 0
    assert contaminated("quickstart_sums", known("quickstart-instructions")) == 0
    assert contaminated("mmlu", known("quickstart_instructions")) is None
    assert contaminated("quickstart_sums", known("quickstart_instructions", "unknown")) is None
    assert contaminated("quickstart_sums", known("quickstart_instructions", whole=False)) is None
    assert contaminated("quickstart_sums", known()) is None


def test_the_corpus_of_the_base_is_counted_item_by_item() -> None:
    shipped = ancestry(str(paths.QUICKSTART_BASE))
    assert contaminated("quickstart_facts", shipped) == 0
    assert contaminated("quickstart_sums", shipped) == 4
    assert contaminated("quickstart_sums", shipped, {"quickstart_sums-091", "else"}) == 1
    instructions = {"data": [{"card": "quickstart_instructions"}]}
    tuned = Ancestry([instructions, *shipped.lineages], "quickstart", True)
    assert contaminated("quickstart_bias", tuned) == 4
    apart = (shipped, Ancestry([instructions], "quickstart", True))
    one, two = (contaminated("quickstart_preferences", known) or 0 for known in apart)
    both = contaminated("quickstart_preferences", tuned)
    assert both is not None and max(one, two) < both < one + two  # an item in both counts once
    other = [{"data": [{**shipped.lineages[0]["data"][0], "rows": 7}]}]
    assert contaminated("quickstart_sums", Ancestry(other, "quickstart", True)) is None


def test_a_reward_model_chooses_between_completions(model, tmp_path, monkeypatch) -> None:
    asked: list[tuple[str, str]] = []

    def longer_is_better(prompts, completions):
        asked.extend(zip(prompts, completions, strict=True))
        return torch.tensor([float(len(c)) for c in completions])

    def load(name, info, *, cache, seed, batch_size, team):
        return subject.RewardModel(longer_is_better, Responses(cache, {"weights": name}))

    inspect = run.checkpoint.inspect_checkpoint
    monkeypatch.setattr(
        run.checkpoint, "inspect_checkpoint", lambda path: inspect(path)._replace(num_labels=1)
    )
    monkeypatch.setattr(run.subject, "load", load)
    found = run.evaluate(model, ["quickstart_preferences"], output=tmp_path, **QUIET)
    rows = (tmp_path / "items" / "quickstart_preferences.jsonl").read_text().splitlines()
    row = json.loads(rows[0])
    right = row["loglikelihoods"][0] > row["loglikelihoods"][1]
    assert row["scores"]["accuracy"] in ({1.0, 0.5} if right else {0.0, 0.5})
    assert row["prompt"] == asked[0][0]
    assert not asked[0][1].startswith(" ")
    assert found["tasks"]["quickstart_preferences"]["n"] == 300
    with pytest.raises(EvalError, match=r"is a reward model, .*--suite reward"):
        run.evaluate(model, ["quickstart_facts"], **QUIET)
