"""PPO from a real base against human preferences: whole and LoRA, one and two processes."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from align import checkpoint
from align.ppo.trainer import PPOTrainer

ROOT = Path(__file__).resolve().parents[2]
COMMON = {
    "model_name_or_path": "models/stories260K-hf",
    "chat_template": "plain",
    "max_length": 256,
    "dataset_limit": 60,
    "eval_fraction": 0.1,
    "learning_rate": 5e-4,
    "save_steps": 1,
    "per_device_train_batch_size": 4,
}
STAGES = {
    "reward": {"datasets": {"hh_rlhf_harmless": 1.0}, "max_steps": 2, "center_samples": 4},
    "ppo": {
        "datasets": {"hh_rlhf_harmless_prompts": 1.0},
        "max_completion_length": 12,
        "total_episodes": 16,  # of which a rollout makes 8
        "num_ppo_epochs": 1,
        "truncated": "score",
        "eval_steps": 0,
        "eval_prompts": 4,
    },
}
KINDS = {"full": False, "lora": True}
LAUNCHED = """
import json, runpy, sys
for argv in json.loads(sys.argv[1]):
    sys.argv = argv
    runpy.run_path(argv[0])["main"]()
"""


def argv(world: Path, stage: str, kind: str, processes: int = 1) -> list[str]:
    """The command line of a stage, whose config is written here."""
    out = world / f"{stage}-{kind}-{processes}"
    values = {**COMMON, **STAGES[stage], "output_dir": str(out), "use_peft": KINDS[kind]}
    if stage == "ppo":
        values["reward_model"] = str(world / f"reward-{kind}-1")
        values["gradient_accumulation_steps"] = 2 // processes
    out.with_suffix(".yaml").write_text(json.dumps(values))
    return [str(ROOT / f"recipes/{stage}.py"), "--config", str(out.with_suffix(".yaml"))]


def run(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        runpy.run_path(words[0])["main"]()


def check(folder: Path, kind: str) -> list[dict]:
    lineage = checkpoint.read_lineage(folder)
    assert lineage["held_out"]["eval/n"] == 4 and math.isfinite(lineage["held_out"]["eval/score"])
    info = checkpoint.inspect_checkpoint(folder, expect="causal")
    assert (info.kind == "adapter") == (kind == "lora")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss/policy" in row]
    assert [row["rollout"] for row in rows] == [1, 2]
    for row in rows:
        assert all(math.isfinite(row[k]) for k in ("score", "kl", "loss/policy", "loss/value"))
    return rows


@pytest.mark.slow
@pytest.mark.data
def test_ppo_on_real_data(align_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    os.environ["ALIGN_DATA"] = str(align_data)
    for kind in KINDS:
        run(argv(tmp_path, "reward", kind))

    # Two processes, both kinds in one launch.
    (tmp_path / "launched.py").write_text(LAUNCHED)
    jobs = [argv(tmp_path, "ppo", kind, 2) for kind in KINDS]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(tmp_path / "launched.py"), json.dumps(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert both.returncode == 0, both.stderr[-3000:]
    assert both.stderr.count("reward model: one adapter more on the policy's backbone") == 1

    # One process, cut off in its second rollout and resumed.
    complete = PPOTrainer._complete

    class Killed(Exception):
        pass

    def cut(self, prompts, stream):
        if stream == 1:
            raise Killed
        return complete(self, prompts, stream)

    for kind in KINDS:
        words = argv(tmp_path, "ppo", kind)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(PPOTrainer, "_complete", cut)
            run(words)
        run([*words, "--resume", "true"])
        one, two = (check(tmp_path / f"ppo-{kind}-{n}", kind) for n in (1, 2))
        for name in ("score", "kl", "completion_length"):  # of the first rollout, before any step
            assert two[0][name] == pytest.approx(one[0][name], rel=1e-4, abs=1e-5), name
    capfd.readouterr()
