"""recipes/reward.py as people run it, and what its reward model must be."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from align import checkpoint, reward
from align.errors import CheckpointError, ConfigError, DataError
from align.scoring import RewardScorer

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "reward.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.checkpoint(folder / "sft", template=tiny.PLAIN)
    rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in tiny.pairs(160)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def argv(world, out, *more):
    config = world / "reward.yaml"
    config.write_text(
        f"model_name_or_path: {world / 'sft'}\ndatasets: {{{world / 'pairs.jsonl'}: 1.0}}\n"
        "learning_rate: 3.0e-3\nper_device_train_batch_size: 8\nmax_length: 128\n"
        "logging_steps: 5\nsave_steps: 8\neval_fraction: 0.2\ncenter_samples: 16\n"
        "center_max_new_tokens: 8\n"
    )
    return [str(RECIPE), "--config", str(config), "--output_dir", str(out), *more]


def run(monkeypatch, world, out, *more):
    monkeypatch.setattr(sys, "argv", argv(world, out, *more))
    runpy.run_path(str(RECIPE))["main"]()


@pytest.fixture(scope="module")
def finished(world):
    with pytest.MonkeyPatch.context() as patch:
        run(patch, world, world / "whole")
    return world / "whole"


def report(folder):
    return json.loads((folder / "reward_report.json").read_text())


def test_what_a_run_leaves(finished):
    found = report(finished)
    assert found["accuracy"]["value"] > 0.9 and found["accuracy"]["n"] == found["pairs"] > 10
    low, high = found["accuracy"]["ci95"]
    assert 0 < low < found["accuracy"]["value"] <= high + 1e-9 <= 1 + 1e-9
    assert (
        list(found["by_card"]) == ["../pairs.jsonl"]  # as seen from there, wherever that is
        and sum(v["n"] for v in found["by_kind"].values()) == found["pairs"]
    )
    assert 0 <= found["calibration"]["ece"] <= 1
    assert sum(b["n"] for b in found["calibration"]["bins"]) == found["pairs"]
    assert 0.2 < found["length_only"]["value"] < 0.9
    moved = found["sensitivity"]
    assert moved["eos_mean_abs"] > 1e-4 > max(moved["padding_max_abs"], moved["batching_max_abs"])
    lineage = checkpoint.read_lineage(finished)
    assert lineage["stage"] == "reward" and lineage["held_out"] == found["accuracy"]
    assert checkpoint.inspect_checkpoint(finished, expect="reward").num_labels == 1


def test_two_runs_are_the_same_to_the_bit(finished, world, monkeypatch):
    run(monkeypatch, world, world / "again")
    assert checkpoint.weights_sha256(world / "again") == checkpoint.weights_sha256(finished)
    assert report(world / "again") == report(finished)
    configs = [(f / "config.json").read_text() for f in (world / "again", finished)]
    assert configs[0] == configs[1]


def test_resumed_gives_the_same_bits(finished, world, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(reward, "center", die)
        with pytest.raises(Killed):
            run(patch, world, world / "killed")
    assert not (world / "killed" / "lineage.json").exists()
    import shutil

    newest = checkpoint.newest_complete(world / "killed")
    shutil.rmtree(newest)  # as if killed in the middle of training
    parent = world / "sft" / "config.json"
    before = parent.read_text()
    tiny.edit_json(parent, rope_theta=500.0)
    with pytest.raises(ConfigError, match=r"killed can't be resumed: model_name_or_path .*changed"):
        run(monkeypatch, world, world / "killed", "--resume")
    parent.write_text(before)
    run(monkeypatch, world, world / "killed", "--resume")
    assert checkpoint.weights_sha256(world / "killed") == checkpoint.weights_sha256(finished)
    assert report(world / "killed") == report(finished)


def test_the_parents_samples_score_zero_on_average(finished, world):
    from align.config import RewardStage

    config = RewardStage(
        model_name_or_path=str(world / "sft"),
        datasets={"x": 1.0},
        output_dir="",
        learning_rate=1.0,
        per_device_train_batch_size=1,
        center_max_new_tokens=8,
    )
    prompts = [p["prompt"] for p in tiny.pairs(64, seed=5)]
    completions, ended = reward.sample(config, prompts)
    scores = RewardScorer.load(str(finished))(prompts, completions, ended)
    centred = checkpoint.read_lineage(finished)["centred"]
    assert centred["samples"] == 16
    assert abs(scores.mean().item()) < 4 * centred["samples_std"] / math.sqrt(16)
    raw = checkpoint.load_reward_model(str(finished))
    assert raw.model.config.score_offset == centred["score_offset"] != 0


def test_lora_with_its_head(world, monkeypatch):
    run(
        monkeypatch, world, world / "lora", "--use_peft", "--lora_r", "4", "--learning_rate", "1e-2"
    )
    assert checkpoint.inspect_checkpoint(world / "lora", expect="reward").kind == "adapter"
    assert report(world / "lora")["accuracy"]["value"] > 0.9
    scorer = RewardScorer.load(str(world / "lora"))
    assert scorer.offset == checkpoint.read_lineage(world / "lora")["centred"]["score_offset"]
    good, bad = scorer(["has he apples 5"] * 2, ["Yes, he found apples.", "No, fool apples."])
    assert good > bad


@pytest.mark.slow
def test_two_processes(finished, world):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "recipes/accelerate/cpu.yaml"), "--main_process_port", "0"]
    command += argv(world, world / "two", "--per_device_train_batch_size", "4")
    done = subprocess.run(command, env=env, text=True, capture_output=True, cwd=world, check=False)
    assert done.returncode == 0, done.stderr
    assert checkpoint.read_lineage(world / "two")["hardware"]["processes"] == 2
    assert report(world / "two")["accuracy"]["value"] > 0.9
    assert report(world / "two")["mean_margin"] == pytest.approx(
        report(finished)["mean_margin"], rel=0.2
    )


# ---------------------------------------------------------------- rows


def test_both_sides_end_with_eos_and_long_pairs_are_counted():
    tokenizer = tiny.tokenizer(template=tiny.PLAIN)
    long = {**tiny.pairs(1)[0], "rejected": "No " * 200}
    rows, kept, overlong = reward.tokenise(
        [*tiny.pairs(3), long], tokenizer, max_length=128, eos_ids=[tokenizer.eos_token_id]
    )
    assert (len(rows), kept, overlong) == (3, [0, 1, 2], 1)
    assert all(ids[-1] == tokenizer.eos_token_id for row in rows for ids in row.values())


def test_a_misspelled_layer_is_a_line(world, monkeypatch):
    with pytest.raises(ConfigError, match=r"names q_porj, .*did you mean q_proj\?"):
        run(monkeypatch, world, world / "typo", "--use_peft", "--lora_target_modules", "[q_porj]")
    assert not (world / "typo").exists()


def test_nothing_fits(world, monkeypatch):
    with pytest.raises(DataError, match=r"none of the .* pairs fits into max_length 5"):
        run(monkeypatch, world, world / "short", "--max_length", "5")


def test_groups_hold_the_pairs_of_one_prompt():
    records = [{"prompt": p} for p in ("a", "b", "a", [{"role": "user", "content": "a"}], "b", "a")]
    assert sorted(map(sorted, reward.by_prompt(records))) == [[0, 2, 5], [1, 4], [3]]


# ---------------------------------------------------------------- numbers of the report


def test_wilson():
    found = reward.accuracy([1.0] * 9 + [-1.0])
    assert found["value"] == 0.9 and found["n"] == 10
    assert found["ci95"] == pytest.approx([0.5958, 0.9821], abs=1e-4)  # 1927, as R's binom.wilson
    assert reward.accuracy([]) == {"value": None, "ci95": None, "n": 0}
    assert reward.accuracy([0.0, 0.0])["value"] == 0.5


def test_calibration_of_honest_and_of_boastful_margins():
    draw = torch.Generator().manual_seed(0)
    size = torch.rand(20_000, generator=draw) * 3
    right = torch.rand(20_000, generator=draw) < torch.sigmoid(size)
    margins = torch.where(right, size, -size)
    assert reward.calibration(margins.tolist())["ece"] < 0.01
    assert reward.calibration((10 * margins).tolist())["ece"] > 0.1
    assert reward.calibration([])["ece"] is None


def test_the_length_baseline_learns_its_direction_on_training_pairs():
    short = [{"chosen": "a", "rejected": "aa"}] * 3
    assert reward.length_baseline(short, short) == {"rule": "shorter", **reward.accuracy([1.0] * 3)}
    long = [{"chosen": "aa", "rejected": "a"}]
    assert reward.length_baseline(short, long)["value"] == 0.0


# ---------------------------------------------------------------- scorer


def test_scores_do_not_depend_on_company_or_order(finished):
    scorer = RewardScorer.load(str(finished))
    prompts = [f"has he {'apples ' * n}" for n in range(9)]
    completions = ["Yes, he found" + " now" * n for n in (8, 0, 3, 1, 7, 2, 6, 4, 5)]
    together = scorer(prompts, completions)
    assert together.shape == (9,) and together.dtype == torch.float32
    for budget in (1, 40, 100):
        scorer.batch_tokens = budget
        assert torch.allclose(scorer(prompts, completions), together, atol=1e-5)
    assert torch.allclose(scorer(prompts[::-1], completions[::-1]).flip(0), together, atol=1e-5)
    assert scorer([], []).shape == (0,)


def test_messages_and_a_string_are_the_same_prompt(finished):
    scorer = RewardScorer.load(str(finished))
    messages = [{"role": "user", "content": "has he apples"}]
    assert torch.equal(scorer(["has he apples"], ["Yes."]), scorer([messages], ["Yes."]))


def test_eos_is_shown_only_where_the_completion_ended(finished):
    scorer = RewardScorer.load(str(finished))
    whole, cut = scorer.encode(["a", "a"], ["Yes.", "Yes."], [True, False])
    assert whole == [*cut, scorer.eos_ids[0]]
    scores = scorer(["a", "a"], ["Yes.", "Yes."], [True, False])
    assert abs(scores[0] - scores[1]) > 1e-5


def test_too_long_for_the_reward_model(finished):
    with pytest.raises(DataError, match=r"longer than the reward model's context \(256\)"):
        RewardScorer.load(str(finished))(["a"], ["two " * 300])


def test_a_reward_model_blind_to_eos_is_refused(finished, tmp_path):
    """Its template writes EOS where attention can't tell it from nothing: a head of zeros."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(finished, tmp_path / "blind")
    weights = load_file(tmp_path / "blind" / "model.safetensors")
    weights["score.weight"].zero_()
    save_file(weights, tmp_path / "blind" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is blind to EOS: it scores"):
        RewardScorer.load(str(tmp_path / "blind"))


def test_a_reward_model_of_no_numbers_is_refused(finished, tmp_path):
    scorer = RewardScorer.load(str(finished), device="cpu")
    scorer.model.score.weight.data *= math.nan
    with pytest.raises(CheckpointError, match="scores nan for a short text: its weights are no"):
        scorer.check_eos("it")


def test_the_report_sees_a_score_that_moves_with_padding(finished):
    """A model that reads PADs would be found."""
    scorer = RewardScorer.load(str(finished), device="cpu")
    rows = scorer.encode(["has he apples"] * 2, ["Yes.", "No, he found three apples."])
    assert reward.sensitivity(scorer, rows)["padding_max_abs"] < 1e-5
    forward = scorer._forward
    scorer._forward = lambda *batch, padding: forward(*batch, padding=padding) + 0.01 * padding
    assert reward.sensitivity(scorer, rows)["padding_max_abs"] == pytest.approx(0.16, abs=1e-4)


def test_trl_with_pad_equal_to_eos_is_blind_and_we_refuse_it(tmp_path):
    """What TRL leaves when a tokenizer has no PAD: a config whose PAD is EOS."""
    from transformers import AutoModelForSequenceClassification

    base = tiny.checkpoint(tmp_path / "base", pad="<eos>", template=tiny.PLAIN)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    eos = model.config.pad_token_id
    ids = torch.tensor([[5, 6, 7, eos], [5, 6, 7, eos]])
    with torch.no_grad():
        scores = model(ids).logits, model(ids[:, :3]).logits
    assert torch.allclose(*scores, atol=1e-6), "the trap is there"
    model.save_pretrained(tmp_path / "rm")
    tiny.tokenizer("<eos>", tiny.PLAIN).save_pretrained(tmp_path / "rm")
    with pytest.raises(
        CheckpointError, match=r"has PAD 0 and EOS .0.: it was trained without a PAD of its own"
    ):
        RewardScorer.load(str(tmp_path / "rm"))
