"""PPO under FSDP2 in two CPU processes equals one process: gradients, weights, resume, files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align import checkpoint

TESTS = Path(__file__).parents[1]
OPTIONS = {
    "total_episodes": 32,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "max_grad_norm": 0.05,
    "ema_decay": 0.5,
    "kl_budget": 50.0,
    "save_steps": 1,
    "eval_steps": 0,
}


def torchrun(out: Path, processes: int, *, fsdp: bool, **job: Any) -> Path:
    """Run tests/ppo_sharded.py; a rollout is 16 completions, however many processes."""
    out.mkdir(exist_ok=True)
    options = {**OPTIONS, **job.pop("options", {}), "per_device_train_batch_size": 4}
    options["gradient_accumulation_steps"] = 2 // processes
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += [str(processes), str(TESTS / "ppo_sharded.py"), str(out)]
    command += [json.dumps({"fsdp": fsdp, "options": options, **job})]
    path = f"{TESTS.parent}{os.pathsep}{TESTS}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


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
@pytest.mark.parametrize("lora", [False, True])
def test_sharded_weights_learn_what_whole_ones_learn(tmp_path, lora):
    options = {"use_peft": lora, "gradient_checkpointing": lora}
    one = torchrun(tmp_path / "one", 2, fsdp=False, options=options)  # DDP
    cut = torchrun(tmp_path / "cut", 2, fsdp=True, options=options)
    close(cut / "gradients.safetensors", one / "gradients.safetensors")
    close(cut / "weights.safetensors", one / "weights.safetensors")
    for a, b in zip(metrics(cut), metrics(one), strict=True):
        for name in ("loss/policy", "loss/value", "score", "kl", "entropy", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    close(cut / "run" / file, one / "run" / file)  # the average, whole, by one process
    assert not list((cut / "run").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_sharded_run_goes_on_bit_for_bit(tmp_path, lora):
    options = {"use_peft": lora}
    whole = torchrun(tmp_path / "whole", 2, fsdp=True, options=options)
    cut = torchrun(tmp_path / "cut", 2, fsdp=True, options=options, stop=1)
    newest = checkpoint.newest_complete(cut / "run")
    assert newest is not None and newest.name == "checkpoint-4"
    shapes = {n: w.shape for n, w in load_file(newest / "networks.safetensors").items()}
    assert shapes == {n: w.shape for n, w in load_file(whole / "weights.safetensors").items()}
    torchrun(cut, 2, fsdp=True, options={**options, "resume": True})
    for name, weight in load_file(whole / "weights.safetensors").items():
        assert torch.equal(load_file(cut / "weights.safetensors")[name], weight), name
    assert (cut / "progress.json").read_text() == (whole / "progress.json").read_text()
