"""The tax is paired, has a sign, an interval and a verdict, and refuses other items."""

import json

import numpy as np
import pytest

from align.errors import EvalError
from align.evaluation import tax


def rows(scores, task="sums", **more):
    return [
        {
            "task": task,
            "id": f"q{i}",
            "cluster": f"q{i}",
            "scores": item,
            "completion": "The answer is 7.",
            "meta": {},
            **more,
        }
        for i, item in enumerate(scores)
    ]


def write(folder, tasks, metrics=None):
    """An evaluation folder: tasks is name -> rows."""
    (folder / "items").mkdir(parents=True)
    entries = {}
    for name, items in tasks.items():
        text = "\n".join(json.dumps(row) for row in items)
        (folder / "items" / f"{name}.jsonl").write_text(text + "\n")
        known = metrics or {"exact_match": True}
        entries[name] = {"metrics": {m: {"higher_is_better": h} for m, h in known.items()}}
    (folder / "results.json").write_text(json.dumps({"schema": 1, "tasks": entries}))
    return folder


def binary(rate, n, seed):
    return (np.random.default_rng(seed).random(n) < rate).astype(float)


def taxed(base, share, seed):
    """The same items with a share of the right ones lost."""
    keep = np.random.default_rng(seed).random(len(base)) >= share
    return base * keep


def folders(tmp_path, base, **others):
    first = write(tmp_path / "eval" / "base", {"sums": rows([{"exact_match": x} for x in base])})
    rest = {
        name: write(tmp_path / "eval" / name, {"sums": rows([{"exact_match": x} for x in scores])})
        for name, scores in others.items()
    }
    return first, rest


def test_every_later_stage_against_every_earlier_one(tmp_path):
    base = binary(0.7, 300, 0)
    first, rest = folders(tmp_path, base, sft=base, ppo=taxed(base, 0.3, 1))
    found = tax.alignment_tax(first, rest)
    assert list(found["pairs"]) == ["base->sft", "base->ppo", "sft->ppo"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_loss_is_a_positive_tax_and_a_negative_delta(tmp_path):
    base = binary(0.7, 300, 0)
    after = taxed(base, 0.3, 1)
    entry = tax.alignment_tax(*folders(tmp_path, base, ppo=after))["pairs"]["base->ppo"]["sums"]
    assert entry["delta"] == pytest.approx(after.mean() - base.mean())
    assert entry["tax"] == -entry["delta"] > 0.15
    assert entry["ci95"][0] <= entry["delta"] <= entry["ci95"][1] < 0
    assert entry["verdict"] == "tax"
    assert entry["items_lost"] == int((base - after).sum())
    assert entry["p_mcnemar"] == pytest.approx(entry["p"])
    assert "a tax" in entry["sentence"]


def test_a_gain(tmp_path):
    base = binary(0.4, 300, 0)
    better = np.maximum(base, binary(0.5, 300, 2))
    entry = tax.alignment_tax(*folders(tmp_path, base, sft=better))["pairs"]["base->sft"]["sums"]
    assert entry["verdict"] == "gain"
    assert entry["tax"] < 0


def test_no_change_on_many_items_is_none_and_says_how_much_it_could_be(tmp_path):
    base = binary(0.7, 500, 0)
    entry = tax.alignment_tax(*folders(tmp_path, base, sft=base))["pairs"]["base->sft"]["sums"]
    assert entry["verdict"] == "none"
    assert "no tax larger than +0.8 pp" in entry["sentence"]


def test_no_change_on_few_items_is_unclear_and_says_what_it_needs(tmp_path):
    base = binary(0.7, 20, 0)
    found = tax.alignment_tax(*folders(tmp_path, base, sft=base))
    entry = found["pairs"]["base->sft"]["sums"]
    assert entry["verdict"] == "unclear"
    assert "needs n ≈" in entry["sentence"]
    assert "has 20" in entry["sentence"]
    assert "can't tell" in tax.table(found)


def test_one_item_has_no_interval(tmp_path):
    entry = tax.alignment_tax(*folders(tmp_path, [1.0], sft=[0.0]))["pairs"]["base->sft"]["sums"]
    assert (entry["delta"], entry["stderr"], entry["ci95"], entry["verdict"]) == (
        -1.0,
        None,
        None,
        "unclear",
    )


def test_format_and_capability_are_told_apart(tmp_path):
    right = binary(0.8, 200, 0)
    strict = taxed(right, 0.5, 1)
    before = [{"exact_match": x, "flexible_match": x, "extraction_failure": 0.0} for x in right]
    after = [
        {"exact_match": s, "flexible_match": x, "extraction_failure": float(s != x)}
        for s, x in zip(strict, right, strict=True)
    ]
    metrics = {"exact_match": True, "flexible_match": True}
    first = write(tmp_path / "eval" / "base", {"sums": rows(before)}, metrics)
    second = write(tmp_path / "eval" / "ppo", {"sums": rows(after, completion="7")}, metrics)
    entry = tax.alignment_tax(first, {"ppo": second})["pairs"]["base->ppo"]["sums"]
    assert entry["capability_delta"] == 0
    assert entry["format_delta"] == pytest.approx(entry["delta"])
    assert entry["extraction_failure_delta"] > 0.3
    assert entry["completion_words_delta"] == pytest.approx(-3)


def test_likelihood_tasks_have_no_format_to_lose(tmp_path):
    first, rest = folders(tmp_path, [1.0, 0.0, 1.0], sft=[0.0, 0.0, 1.0])
    for folder in (first, rest["sft"]):
        path = folder / "items" / "sums.jsonl"
        items = [json.loads(line) for line in path.read_text().splitlines()]
        for row in items:
            del row["completion"]
        path.write_text("\n".join(json.dumps(r) for r in items))
    entry = tax.alignment_tax(first, rest)["pairs"]["base->sft"]["sums"]
    assert (entry["format_delta"], entry["capability_delta"]) == (0, entry["delta"])


def test_holm_is_over_the_tasks_of_a_pair(tmp_path):
    base = binary(0.7, 200, 0)
    tasks = {f"t{i}": rows([{"exact_match": x} for x in base], f"t{i}") for i in range(4)}
    worse = {
        f"t{i}": rows([{"exact_match": x} for x in taxed(base, 0.04, i)], f"t{i}") for i in range(4)
    }
    first = write(tmp_path / "eval" / "base", tasks)
    second = write(tmp_path / "eval" / "sft", worse)
    found = tax.alignment_tax(first, {"sft": second})
    entries = found["pairs"]["base->sft"].values()
    smallest = min(e["p"] for e in entries)
    assert min(e["p_holm"] for e in entries) == pytest.approx(min(1, 4 * smallest))
    assert found["overall"]["base->sft"]["tasks"] == 4
    assert found["overall"]["base->sft"]["stderr"] < max(e["stderr"] for e in entries)


def test_tasks_of_which_more_is_not_better_are_no_capability(tmp_path):
    first = write(tmp_path / "eval" / "base", {"bias": rows([{"rate": 0.5}] * 3)}, {"rate": None})
    second = write(tmp_path / "eval" / "sft", {"bias": rows([{"rate": 0.4}] * 3)}, {"rate": None})
    assert tax.alignment_tax(first, {"sft": second})["pairs"] == {"base->sft": {}}


def test_unscored_items_are_dropped_and_counted(tmp_path):
    first, rest = folders(tmp_path, [1.0, None, 1.0, 0.0], sft=[1.0, 1.0, None, 0.0])
    entry = tax.alignment_tax(first, rest)["pairs"]["base->sft"]["sums"]
    assert (entry["n"], entry["unscored"], entry["delta"]) == (2, 2, 0)


def test_other_items_are_refused(tmp_path):
    first, rest = folders(tmp_path, [1.0, 0.0, 1.0], sft=[1.0, 0.0])
    with pytest.raises(EvalError, match=r"sums: .*hold other items \(3 and 2, 1 in only one"):
        tax.alignment_tax(first, rest)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(EvalError, match=r"no results\.json"):
        tax.alignment_tax(tmp_path, {})


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 9, "tasks": {}}')
    with pytest.raises(EvalError, match="schema 9, expected 1"):
        tax.alignment_tax(tmp_path, {})


def test_reward_stands_beside_the_tax_where_it_was_measured(tmp_path):
    base = binary(0.7, 50, 0)
    first, rest = folders(tmp_path, base, sft=base, ppo=taxed(base, 0.3, 1))
    (tmp_path / "ppo").mkdir()
    scores = {0: [-1.0, 0.0, -0.5, -0.5], 2: [9.0] * 4, 4: [1.5, 2.5, 1.9, 2.1]}
    lines = [
        {"rollout": rollout, "prompt": f"p{i}", "score": score}
        for rollout, row in scores.items()
        for i, score in enumerate(row)
    ]
    (tmp_path / "ppo" / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    points = {p["name"]: p for p in tax.alignment_tax(first, rest)["pareto"]}
    assert [points[s]["reward"] for s in ("base", "sft", "ppo")] == [None, -0.5, 2.0]
    assert points["ppo"]["lost"] > points["sft"]["lost"] == points["base"]["lost"] == 0
    assert points["sft"]["gain"] is None
    assert points["ppo"]["gain"] == 2.5
    gains = tax.stats.paired(scores[4], scores[0])  # the same prompts
    assert points["ppo"]["gain_ci95"] == pytest.approx(list(gains.ci95))
    assert points["ppo"]["reward_ci95"][0] < 2.0 < points["ppo"]["reward_ci95"][1]


def test_the_mean_of_tasks_on_the_same_items_is_no_surer_than_one_of_them(tmp_path):
    base = binary(0.7, 200, 0)
    after = taxed(base, 0.2, 1)
    scores = {"base": base, "sft": after}
    stderr = {}
    for data in ("same", "own"):
        for stage in ("base", "sft"):
            folder = tmp_path / data / "eval" / stage
            items = rows([{"exact_match": x} for x in scores[stage]])
            write(folder, {"sums": items, "fewshot": items})
            results = json.loads((folder / "results.json").read_text())
            for name, entry in results["tasks"].items():
                entry["data_sha256"] = data if data == "same" else name
            (folder / "results.json").write_text(json.dumps(results))
        made = tax.alignment_tax(
            tmp_path / data / "eval" / "base", {"sft": tmp_path / data / "eval" / "sft"}
        )
        one = made["pairs"]["base->sft"]["sums"]
        stderr[data] = made["overall"]["base->sft"]["stderr"] / one["stderr"]
    assert stderr["same"] == pytest.approx(1, abs=0.03)
    assert stderr["own"] == pytest.approx(0.5**0.5, abs=0.03)


def test_the_verdict_is_wrong_at_its_stated_rate():
    """Without any true change, tax or gain is said in about 5% of draws at most."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        base, after = rng.random(120) < 0.6, rng.random(120) < 0.6
        found = tax.stats.paired(after, base)
        wrong += found.p < 0.05
    assert wrong / 200 < 0.08
