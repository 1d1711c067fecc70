"""The sweep over weight averages: tax, reward and front of each α, as command and in the report."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_helpers import byte_tokenizer, save, tiny_model
from test_evaluation_run import docs, own_task
from transformers import LlamaForSequenceClassification

from align import report
from align.cli import main
from align.errors import CheckpointError, ConfigError, EvalError
from align.evaluation import held_out, sweep

WORDS = ["tree", "lake", "bird", "stone", "cloud", "road", "boat", "hill", "lamp", "door"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder: base, sft, ppo with its lineage, a reward model, a task of its own."""
    folder = tmp_path_factory.mktemp("run")
    save(folder / "base", seed=2)
    for seed, stage in enumerate(("sft", "ppo")):
        save(folder / stage, seed=seed, chat=True)
    rows = [{"prompt": f"Tell me of the {w} and the {v}."} for w in WORDS for v in WORDS[:4]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {
        "datasets": {str(folder / "prompts.jsonl"): 1.0},
        "dataset_limit": None,
        "eval_fraction": 0.5,
        "invalid_fraction": 0.01,
        "eval_prompts": 12,
        "seed": 0,
        "max_completion_length": 6,
        "temperature": 1.0,
    }
    (folder / "ppo" / "lineage.json").write_text(json.dumps({"stage": "ppo", "config": config}))
    settings = tiny_model().config
    settings.num_labels = 1
    torch.manual_seed(7)
    LlamaForSequenceClassification(settings).save_pretrained(folder / "reward")
    byte_tokenizer(chat=True).save_pretrained(folder / "reward")
    (folder / "recipe.yaml").write_text("name: tiny\nstages: {}\n")
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    return own_task(tmp_path_factory.mktemp("task"), docs(60))


@pytest.fixture(scope="module")
def swept(run, task) -> dict:
    arguments = ["eval", "--model", str(run / "ppo"), "--average-with", str(run / "sft")]
    arguments += ["--alpha", "0.5", "--baseline", str(run / "base"), "--suite", task]
    main([*arguments, "--reward-model", str(run / "reward"), "--json"])
    return json.loads((run / "eval" / "sweep.json").read_text())


def test_each_alpha_has_its_tax_and_its_reward_with_intervals(swept):
    assert [p["alpha"] for p in swept["points"]] == [0, 0.5, 1]
    for point in swept["points"]:
        assert point["lost_ci95"][0] <= point["lost"] <= point["lost_ci95"][1]
        assert point["reward_ci95"][0] < point["reward"] < point["reward_ci95"][1]
        assert (point["n"], point["prompts"]) == (60, 12)
    start, middle, end = swept["points"]
    assert start["gain"] is None
    assert end["gain"] == pytest.approx(end["reward"] - start["reward"], abs=1e-5)
    assert middle["bought_back"] == pytest.approx(end["lost"] - middle["lost"], abs=1e-5)
    assert end["bought_back"] is None


def test_the_middle_is_the_evaluation_of_the_average(swept, run):
    made = run / "eval" / "sweep" / "alpha-0.5"
    results = json.loads((made / "results.json").read_text())
    assert results["model"]["averaged"][0]["path"].endswith("../sft")
    base = json.loads((run / "eval" / "sweep" / "baseline" / "results.json").read_text())
    key = next(iter(results["tasks"]))
    lost = (
        base["tasks"][key]["metrics"]["accuracy"]["value"]
        - results["tasks"][key]["metrics"]["accuracy"]["value"]
    )
    assert swept["points"][1]["lost"] == pytest.approx(lost, abs=1e-5)


def test_the_front_follows_from_the_points(swept):
    for p in swept["points"]:
        beaten = any(
            q["reward"] >= p["reward"]
            and q["lost"] <= p["lost"]
            and (q["reward"], q["lost"]) != (p["reward"], p["lost"])
            for q in swept["points"]
        )
        assert p["on_front"] is not beaten


def test_a_table_names_what_was_measured(swept):
    text = sweep.table(swept)
    assert "n = 60 items over 1 task(s), 12 held-out prompts" in text
    assert len([line for line in text.splitlines() if line.endswith("yes")]) >= 1


def test_the_report_draws_the_sweep(swept, run):
    evaluated = run / "eval" / "sft"
    evaluated.mkdir(exist_ok=True)
    source = run / "eval" / "sweep" / "alpha-0" / "results.json"
    (evaluated / "results.json").write_text(source.read_text())
    page = report.write(run).read_text()
    assert "Weights between sft (α = 0) and ppo (α = 1)" in page
    assert "Averages of two checkpoints" in page
    assert page.count("α = 0.5") >= 1


def test_a_sweep_goes_on_with_its_averages_and_refuses_those_of_other_weights(swept, run, task):
    common = {"suites": [task], "alphas": [0.5], "log": lambda line: None}
    ends = run / "sft", run / "ppo", str(run / "base")
    again = sweep.sweep(*ends, run / "eval", **common)
    assert [p["lost"] for p in again["points"]] == [p["lost"] for p in swept["points"]]
    assert again["points"][0]["reward"] is None
    with pytest.raises(CheckpointError, match="average of other weights"):
        sweep.sweep(run / "base", *ends[1:], run / "eval", **common)


def test_scores_of_a_prompt_do_not_depend_on_their_neighbours(run):
    asked = held_out.held_out(run / "ppo")
    assert len(asked.prompts) == 12
    from align.scoring import RewardScorer

    scorer = RewardScorer.load(str(run / "reward"))
    whole = held_out.prompt_scores(run / "sft", asked, scorer)
    few = held_out.prompt_scores(run / "sft", asked._replace(prompts=asked.prompts[3:5]), scorer)
    assert few == pytest.approx(whole[3:5], abs=1e-4)


def test_what_a_sweep_needs_is_said(run):
    command = ["eval", "--model", str(run / "ppo"), "--suite", "tax"]
    with pytest.raises(ConfigError, match="--alpha belongs to a sweep; give --average-with"):
        main([*command, "--alpha", "0.5"])
    with pytest.raises(ConfigError, match="needs one --baseline and takes no --gate; got 0"):
        main([*command, "--average-with", str(run / "sft")])
    with pytest.raises(ConfigError, match=r"'1\.5' is no weight"):
        main([*command, "--average-with", str(run / "sft"), "--alpha", "1.5"])
    with pytest.raises(EvalError, match=r"no lineage\.json of a PPO run"):
        held_out.held_out(run / "sft")
    with pytest.raises(EvalError, match="no chat template"):
        asked = held_out.HeldOut(["Hello"], 4, 1.0, None)
        held_out.prompt_scores(run / "base", asked, None)
