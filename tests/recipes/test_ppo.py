"""recipes/ppo.py as people run it: whole, killed, interrupted, in two processes, with LoRA."""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers
import tiny
import torch

from align import checkpoint
from align.config import RewardStage
from align.errors import CheckpointError, ConfigError, RunError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "ppo.py"
TWO = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
TWO += [str(ROOT / "recipes/accelerate/cpu.yaml"), "--main_process_port", "0"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """An SFT model, a reward model of the same shape, prompts, and a config."""
    folder = tmp_path_factory.mktemp("world")
    tiny.checkpoint(folder / "sft", template=tiny.PLAIN)
    tokenizer = checkpoint.load_tokenizer(str(folder / "sft"))
    stage = RewardStage(
        model_name_or_path=str(folder / "sft"),
        datasets={"x": 1.0},
        output_dir="x",
        learning_rate=1.0,
        per_device_train_batch_size=1,
    )
    torch.manual_seed(1)
    model = checkpoint.new_reward_model(stage, tokenizer)
    model.config.score_offset = 0.25
    checkpoint.write_model(folder / "reward", model, tokenizer)
    rows = [{"prompt": r["prompt"], "answer": r["answer"]} for r in tiny.sums(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ppo.yaml").write_text(
        f"model_name_or_path: {folder / 'sft'}\nreward_model: {folder / 'reward'}\n"
        f"datasets: {{{folder / 'prompts.jsonl'}: 1.0}}\n"
        "learning_rate: 1.0e-3\nper_device_train_batch_size: 4\nnum_ppo_epochs: 2\n"
        "max_length: 96\nmax_completion_length: 8\ntotal_episodes: 24\nsave_steps: 1\n"
        "eval_steps: 2\neval_prompts: 6\neval_fraction: 0.2\n"
    )
    return folder


def argv(world: Path, out: Path, *more: str) -> list[str]:
    return [str(RECIPE), "--config", str(world / "ppo.yaml"), "--output_dir", str(out), *more]


def run(monkeypatch, world: Path, out: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", argv(world, out, *more))
    runpy.run_path(str(RECIPE))["main"]()


def start(command: list[str]) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def finished(world) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        run(patch, world, world / "whole")
    return world / "whole"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves(finished, world):
    lineage = checkpoint.read_lineage(finished)
    assert lineage["stage"] == "ppo" and lineage["held_out"]["eval/n"] == 6
    assert lineage["reward_model"]["weights_sha256"] == checkpoint.weights_sha256(world / "reward")
    assert lineage["tokens"] == sum(m.get("completion_tokens", 0) for m in lines(finished))
    assert checkpoint.inspect_checkpoint(finished, expect="causal").has_chat_template
    assert not list(finished.glob("checkpoint-*"))
    rollouts = [m for m in lines(finished) if "score" in m]
    assert [m["rollout"] for m in rollouts] == [1, 2, 3, 4, 5, 6]
    wanted = "score kl entropy ratio_mean ratio_max clipfrac explained_variance grad_norm"
    wanted += " completion_length truncation_rate tokens_per_second seconds/generate seconds/learn"
    assert set(wanted.split()) <= set(rollouts[0])
    samples = [json.loads(x) for x in (finished / "samples.jsonl").read_text().splitlines()]
    assert {s["rollout"] for s in samples} == {0, 2, 4, 6} and len(samples) == 24


def test_two_runs_are_the_same_to_the_bit(finished, world, monkeypatch):
    run(monkeypatch, world, world / "again")
    assert checkpoint.weights_sha256(world / "again") == checkpoint.weights_sha256(finished)


def test_the_value_model_starts_as_the_reward_model(world):
    from align.config import PPOStage
    from align.parsing import build
    from align.ppo import build_networks
    from align.ppo.models import Sequences
    from align.scoring import RewardScorer
    from align.strict_yaml import read_yaml

    values = {**read_yaml(world / "ppo.yaml"), "output_dir": "x"}
    config = build(PPOStage, values, "test")
    tokenizer = checkpoint.load_tokenizer(config.model_name_or_path)
    networks = build_networks(config, checkpoint.load_policy(config, tokenizer), tokenizer)
    scorer = RewardScorer.load(config.reward_model, device="cpu")
    (row,) = scorer.encode(["how many"], ["two apples"])
    n = len(row)
    sequences = Sequences(torch.tensor([row]), torch.tensor([n - 2]), torch.tensor([2]))
    value = networks("value", sequences, extra=1)[-1]
    torch.testing.assert_close(value, scorer.score_ids([row])[0], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def adapter(world) -> Path:
    """A reward model as an adapter of the SFT model, as recipes/reward.py leaves it with LoRA."""
    (world / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in tiny.pairs(24)))
    flags = ["--model_name_or_path", str(world / "sft"), "--datasets"]
    flags += [f"{{{world / 'pairs.jsonl'}: 1.0}}", "--output_dir", str(world / "adapter")]
    flags += ["--learning_rate", "0.01", "--per_device_train_batch_size", "4", "--max_steps", "3"]
    flags += ["--use_peft", "true", "--max_length", "128", "--center_samples", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reward.py", *flags])
        runpy.run_path(str(ROOT / "recipes/reward.py"))["main"]()
    return world / "adapter"


KILLED = """
import os, runpy, sys
last, folder, sys.argv = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
touches = iter(range(last))
def hook(event, arguments):
    watched = event == "open" or event.startswith(("os.", "shutil."))
    if watched and arguments and folder in str(arguments[0]) and next(touches, None) is None:
        os.kill(os.getpid(), 9)
sys.addaudithook(hook)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a recipe that is gone at its n-th touch of the folder."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "shared"])
def test_killed_at_any_moment_and_resumed_gives_the_same_weights(
    world, kind, adapter, monkeypatch, capsys
):
    """With all that a run keeps beside its weights. Twice between two touches of its folder
    (evaluation, checkpoint, finish), once at any time.
    """
    whole, cut = world / f"whole-{kind}", world / f"killed-{kind}"
    flags = ["--use_peft", json.dumps(kind != "full"), "--total_episodes", "40"]
    flags += ["--reward_model", str(adapter)] if kind == "shared" else []
    flags += ["--ema_decay", "0.7", "--kl_target", "0.5", "--normalize_scores", "true"]
    flags += ["--kl_budget", "100", "--ptx_coef", "0.5", "--ptx_datasets"]
    flags += [f"{{{world / 'prompts.jsonl'}: 1.0}}", "--warmup_steps", "3"]
    run(monkeypatch, world, whole, *flags)
    shared = "reward model: one adapter more on the policy's backbone" in capsys.readouterr().err
    assert shared == (kind == "shared")
    draw = random.Random(kind)
    for touch in (draw.randint(60, 300), draw.randint(30, 200)):
        life = start(
            [sys.executable, "-c", KILLED, str(touch), str(cut), *argv(world, cut, *flags)]
        )
        _, err = life.communicate()
        assert life.returncode == -signal.SIGKILL, (touch, err)
        flags += ["--resume"] if "--resume" not in flags else []
    process = start([sys.executable, *argv(world, cut, *flags)])
    deadline = time.time() + 120
    while not (cut / "metrics.jsonl").exists() and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.01)
    time.sleep(draw.random())
    process.kill()
    process.communicate()
    run(monkeypatch, world, cut, *flags)
    assert checkpoint.weights_sha256(cut) == checkpoint.weights_sha256(whole)
    timeless = [
        [{k: v for k, v in m.items() if "second" not in k} for m in lines(x)] for x in (whole, cut)
    ]
    assert timeless[0] == timeless[1]
    assert (cut / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert sorted(p.name for p in cut.iterdir()) == sorted(p.name for p in whole.iterdir())


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(world):
    out = world / "interrupted"
    process = start([sys.executable, *argv(world, out, "--total_episodes", "4000")])
    deadline = time.time() + 120
    while not list(out.glob("checkpoint-*")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted: saved step" in err.splitlines()[-1]
    assert "--resume" in err.splitlines()[-1] and "Traceback" not in err
    assert checkpoint.newest_complete(out) is not None


@pytest.mark.slow
def test_two_processes_share_the_work_and_see_what_one_sees(world, finished):
    """Half the micro-batch on each of two processes is the same rollout as in one process."""
    out = world / "two"
    more = ["--per_device_train_batch_size", "2", "--report_to", "[tensorboard]"]
    process = start([*TWO, *argv(world, out, *more)])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(list(out.glob("align-ppo/events.*"))) == 1  # one of the two writes
    one, two = lines(finished), lines(out)
    assert [m["rollout"] for m in one] == [m["rollout"] for m in two]
    for a, b in zip(one, two, strict=True):
        for name in ("score", "kl", "entropy", "eval/score", "completion_length", "grad_norm"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4), name
    assert err.count("preflight: output") == 1


@pytest.mark.slow
def test_a_vllm_server_gives_two_processes_what_it_gives_one(world, monkeypatch, tmp_path, capsys):
    """The recipe against a server that speaks as vLLM: each completion has its own seed."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    engine = servers.TinyVLLM(checkpoint.load_causal(str(world / "sft")).model)
    more = ["--rollout", "vllm", "--total_episodes", "16", "--use_peft", "true"]
    with servers.serve(engine) as seen:
        more += ["--vllm_url", seen.url]
        run(monkeypatch, world, tmp_path / "one", *more)
        asked = len(seen)
        assert f"vllm_url: {seen.url}, which gets the run's texts" in capsys.readouterr().err
        more += ["--per_device_train_batch_size", "2"]
        process = start([*TWO, *argv(world, tmp_path / "two", *more)])
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        completions = [s["body"] for s in seen if s["path"] == "/v1/completions"]
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert asked > 16 and [m["rollout"] for m in one] == [m["rollout"] for m in two]
    for a, b in zip(one, two, strict=True):
        for name in ("score", "kl", "eval/score", "completion_length", "sampler_kl"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4), name
    assert all(m["sampler_kl"] < 1e-6 for m in one if "sampler_kl" in m)
    assert len({c["seed"] for c in completions}) == 16 + 6
    assert checkpoint.read_lineage(tmp_path / "two")["config"]["vllm_url"] == seen.url


@pytest.mark.slow
def test_a_reward_that_fails_on_one_of_two_processes_is_still_named(world, tmp_path):
    (tmp_path / "rules.py").write_text(
        "import os\n"
        "def odd(prompts, completions, records):\n"
        "    assert os.environ['RANK'] == '0', 'not here'\n"
        "    return [0.0] * len(completions)\n"
    )
    more = ["--reward_model", "null", "--reward_functions", f"{{{tmp_path}/rules.py:odd: 1.0}}"]
    process = start([*TWO, *argv(world, tmp_path / "out", *more)])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    said = [line for line in err.splitlines() if line.startswith("error: reward")]
    assert len(said) == 1 and "rules.py:odd raised AssertionError: not here" in said[0], err


def test_another_reward_model_underneath_is_not_mixed_in(world, monkeypatch, tmp_path):
    """Resumed after its reward model changed a run is refused; with the old one it goes on."""
    shutil.copytree(world / "reward", tmp_path / "reward")
    flags = ["--reward_model", str(tmp_path / "reward")]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "finish_run", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        run(patch, world, tmp_path / "out", *flags)
    assert checkpoint.newest_complete(tmp_path / "out") is not None
    tiny.edit_json(tmp_path / "reward/config.json", score_offset=3.0)
    with pytest.raises(ConfigError, match=r"out can't be resumed: reward_model .* changed since"):
        run(monkeypatch, world, tmp_path / "out", *flags, "--resume")
    shutil.copyfile(world / "reward/config.json", tmp_path / "reward/config.json")
    run(monkeypatch, world, tmp_path / "out", *flags, "--resume")


@pytest.mark.parametrize(
    "flags",
    [
        ["--vf_coef", "1e9", "--value_learning_rate", "1", "--weight_decay", "1e9"],
        ["--kl_coef", "1e9", "--learning_rate", "1", "--weight_decay", "1e9"],
        ["--temperature", "1e-300"],
    ],
)
def test_weights_that_overflow_end_a_run_in_words(world, monkeypatch, tmp_path, flags):
    with pytest.raises(RunError, match=r"no (finite )?numbers? .*lower learning_rate"):
        run(monkeypatch, world, tmp_path / "out", *flags)


def test_a_rule_alone_is_enough(world, monkeypatch, tmp_path):
    (tmp_path / "rules.py").write_text(
        "def short(prompts, completions, records):\n"
        "    assert all('answer' in r for r in records)\n"
        "    return [-len(c) for c in completions]\n"
    )
    run(
        monkeypatch, world, tmp_path / "out", "--reward_model", "null",
        "--reward_functions", f"{{{tmp_path / 'rules.py'}:short: 1.0}}",
        "--gold_reward_model", str(world / "reward"),
    )  # fmt: skip
    lineage = checkpoint.read_lineage(tmp_path / "out")
    assert lineage["reward_model"] is None
    assert "completions of 3 rollouts in a row were cut at 8 tokens" in lineage["warnings"][0]
    weights = checkpoint.weights_sha256(world / "reward")
    assert lineage["gold_reward_model"]["weights_sha256"] == weights
    judged = [m for m in lines(tmp_path / "out") if "eval/gold_score" in m]
    assert len(judged) == 4 and len({m["eval/gold_score"] for m in judged}) > 1


@pytest.mark.parametrize(
    "flags, kind, message",
    [
        (["--reward_model", "null"], ConfigError, "PPO has no reward"),
        (["--reward_model", "/nowhere"], CheckpointError, "no checkpoint at /nowhere"),
        (["--gold_reward_model", "/nowhere"], CheckpointError, "no checkpoint at /nowhere"),
        (["--reward_url", "localhost:1"], ConfigError, "reward_url is localhost:1; it must begin"),
        (["--reward_functions", "{rules: 1.0}"], ConfigError, "not of the form module:function"),
        (["--gold_functions", "{no.such:f: 1.0}"], ConfigError, "can't import no.such"),
        (["--reward_functions", "{no.such:f: 1.0}"], ConfigError, "can't import no.such"),
        (["--reward_functions", "{math:nothing: 1.0}"], ConfigError, "has no function nothing"),
        (["--value_learning_rate", "1e38"], ConfigError, "value_learning_rate is 1e.38; it must"),
        (
            ["--use_peft", "--lora_target_modules", "[q_porj]"],
            ConfigError,
            "names q_porj, .*q_proj",
        ),
    ],
)
def test_user_errors_come_before_the_weights(world, monkeypatch, tmp_path, flags, kind, message):
    with pytest.raises(kind, match=message):
        run(monkeypatch, world, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
