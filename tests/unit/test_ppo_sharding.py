"""PPO under FSDP2 in two CPU processes equals DDP: gradients, weights, resume, files."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ppo_tiny
import pytest
import tiny
import torch
from safetensors.torch import load_file

from align import checkpoint

TESTS = Path(__file__).parents[1]
OPTIONS = {
    "total_episodes": 32,
    "per_device_train_batch_size": 4,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "max_grad_norm": 0.05,
    "ema_decay": 0.5,
    "kl_budget": 50.0,
    "save_steps": 1,
    "eval_steps": 0,
}


def shared_models(folder: Path) -> dict[str, Any]:
    """An SFT model and a reward adapter of it, as fields of a config."""
    tiny.checkpoint(folder / "sft", template=tiny.PLAIN)
    ppo_tiny.reward_adapter(folder / "reward", folder / "sft")
    paths = {"model_name_or_path": str(folder / "sft"), "reward_model": str(folder / "reward")}
    return {**paths, "reward_functions": None, "use_peft": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """All jobs in one launch of two processes. A rollout is 16 completions.

    For all weights (``full``) and LoRA: ``ddp``, and under FSDP2 ``whole``, and ``cut`` that dies
    in its second rollout, whose checkpoint is copied to ``left``, and that then goes on.
    """
    folder = tmp_path_factory.mktemp("sharding")
    jobs: list[dict[str, Any]] = []
    for kind, lora in (("full", False), ("lora", True)):
        options = {**OPTIONS, "use_peft": lora, "gradient_checkpointing": lora}
        cut = {"out": f"{folder}/{kind}-cut", "fsdp": True}
        jobs += [
            {"out": f"{folder}/{kind}-ddp", "fsdp": False, "options": options},
            {"out": f"{folder}/{kind}-whole", "fsdp": True, "options": options},
            {**cut, "options": options, "stop": 1, "keep": f"{folder}/{kind}-left"},
            {**cut, "options": {**options, "resume": True}},
        ]
    options = {**OPTIONS, "bf16": True, "total_episodes": 8, "num_ppo_epochs": 1}
    options["num_mini_batches"] = 1
    jobs.append({"out": f"{folder}/bf16", "fsdp": True, "options": options})
    options = {**OPTIONS, **shared_models(folder)}
    jobs += [
        {"out": f"{folder}/shared-ddp", "fsdp": False, "options": options},
        {"out": f"{folder}/shared-whole", "fsdp": True, "options": options},
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(TESTS / "ppo_sharded.py"), f"{folder}/jobs.json"]
    path = f"{TESTS.parent}{os.pathsep}{TESTS}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-9000:]
    assert "Warning" not in done.stderr, done.stderr
    return folder


def close(found: Path, wanted: Path) -> None:
    """Two files hold the same tensors to 1e-5."""
    a, b = load_file(found), load_file(wanted)
    assert a.keys() == b.keys() and len(a) > 10
    for name, tensor in b.items():
        torch.testing.assert_close(a[name], tensor, atol=1e-5, rtol=1e-5, msg=name)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [m for m in map(json.loads, lines) if "loss/policy" in m]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "shared"])
def test_sharded_weights_learn_what_whole_ones_learn(runs, kind):
    ddp, cut = runs / f"{kind}-ddp", runs / f"{kind}-whole"
    close(cut / "gradients.safetensors", ddp / "gradients.safetensors")
    close(cut / "weights.safetensors", ddp / "weights.safetensors")
    assert len(metrics(cut)) == 2
    for a, b in zip(metrics(cut), metrics(ddp), strict=True):
        assert a["grad_norm"] > OPTIONS["max_grad_norm"]  # so clipping did something
        for name in ("loss/policy", "loss/value", "score", "kl", "entropy", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_result_is_saved_whole_by_one_process(runs, kind):
    ddp, cut = runs / f"{kind}-ddp/run", runs / f"{kind}-whole/run"
    file = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    close(cut / file, ddp / file)  # the average of the weights, which each process keeps a part of
    assert {p.name for p in cut.iterdir()} == {p.name for p in ddp.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_sharded_run_goes_on_bit_for_bit(runs, kind):
    whole, cut = runs / f"{kind}-whole", runs / f"{kind}-cut"
    left = checkpoint.newest_complete(runs / f"{kind}-left")
    assert left is not None and left.name == "checkpoint-4"
    wanted = load_file(whole / "weights.safetensors")
    shapes = {n: w.shape for n, w in load_file(left / "networks.safetensors").items()}
    assert shapes == {n: w.shape for n, w in wanted.items()}
    found = load_file(cut / "weights.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    assert (cut / "progress.json").read_text() == (whole / "progress.json").read_text()


@pytest.mark.slow
def test_sharded_weights_stay_float32_under_bf16(runs):
    (line,) = metrics(runs / "bf16")
    assert all(math.isfinite(line[name]) for name in ("loss/policy", "loss/value", "grad_norm"))
    assert line["ratio_max"] == pytest.approx(1, abs=1e-2) and line["ratio_mean"] > 0.99
    assert line["kl"] == pytest.approx(0, abs=1e-5)
    weights = load_file(runs / "bf16/weights.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
