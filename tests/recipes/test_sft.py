"""recipes/sft.py as people run it, on a tiny base and records in a local file."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from align import checkpoint
from align.errors import CheckpointError, DataError, RunError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "sft.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base and 120 records, some of them the same."""
    folder = tmp_path_factory.mktemp("world")
    tiny.checkpoint(folder / "base")
    rows = [{k: r[k] for k in ("prompt", "reasoning", "answer")} for r in tiny.sums(120)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def argv(world, out, *more):
    config = world / "sft.yaml"
    config.write_text(
        f"model_name_or_path: {world / 'base'}\nchat_template: plain\n"
        f"datasets: {{{world / 'sums.jsonl'}: 1.0}}\nlearning_rate: 3.0e-3\n"
        "per_device_train_batch_size: 8\nnum_train_epochs: 2\nmax_length: 128\n"
        "logging_steps: 5\nsave_steps: 8\neval_fraction: 0.1\n"
    )
    return [str(RECIPE), "--config", str(config), "--output_dir", str(out), *more]


def run(monkeypatch, world, out, *more):
    """In this process."""
    monkeypatch.setattr(sys, "argv", argv(world, out, *more))
    runpy.run_path(str(RECIPE))["main"]()


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(rows):
    names = (
        "tokens_per_second",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
    )
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


@pytest.fixture(scope="module")
def finished(world):
    with pytest.MonkeyPatch.context() as patch:
        run(patch, world, world / "whole")
    return world / "whole"


def test_what_a_run_leaves(finished, world):
    names = {p.name for p in finished.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "lineage.json",
        "metrics.jsonl",
    } <= names
    assert not [
        n for n in names if n.startswith(("checkpoint", "run.json", "final", "training_args"))
    ]
    rows = metrics(finished)
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(
        rows[0]
    )
    assert rows[-2]["loss"] < rows[0]["loss"] and "eval_loss" in rows[-1]
    lineage = checkpoint.read_lineage(finished)
    assert lineage["stage"] == "sft" and lineage["tokens"] > 1000
    assert lineage["parent"]["weights_sha256"] == checkpoint.weights_sha256(world / "base")
    assert lineage["chat_template_sha256"] == checkpoint.chat_template_sha256(tiny.PLAIN)
    assert lineage["held_out"]["loss"] == rows[-1]["eval_loss"]
    info = checkpoint.inspect_checkpoint(finished)
    assert info.has_chat_template and info.kind == "causal"


def test_two_runs_are_the_same_to_the_bit(finished, world, monkeypatch):
    run(monkeypatch, world, world / "again")
    assert checkpoint.weights_sha256(world / "again") == checkpoint.weights_sha256(finished)
    assert timeless(metrics(world / "again")) == timeless(metrics(finished))


def test_finished_or_in_use(finished, world, monkeypatch, capsys):
    from align.errors import ConfigError

    with pytest.raises(
        ConfigError, match="holds a finished run of sft; give --resume, --overwrite"
    ):
        run(monkeypatch, world, finished)
    before = (finished / "lineage.json").read_text()
    run(monkeypatch, world, finished, "--resume")
    assert (finished / "lineage.json").read_text() == before
    assert "finished; nothing to do" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"another recipe \(learning_rate: 0.003 -> 0.1\)"):
        run(monkeypatch, world, finished, "--resume", "--learning_rate", "0.1")


def launch(world, out, *more, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    env.pop("WANDB_MODE", None)  # some library says on stdout that it saw this
    return subprocess.Popen(
        [sys.executable, *argv(world, out, *more)],
        env=env,
        text=True,
        cwd=world,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bits(finished, world, monkeypatch):
    out = world / "killed"
    process = launch(world, out)
    wait_for(lambda: (out / "checkpoint-16").exists(), process)  # maybe while it is written
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = checkpoint.newest_complete(out)
    assert left is not None and not (out / "lineage.json").exists()
    run(monkeypatch, world, out, "--resume")
    assert checkpoint.weights_sha256(out) == checkpoint.weights_sha256(finished)
    steps = [row["step"] for row in metrics(out)]
    assert steps == sorted(steps) and steps == [row["step"] for row in metrics(finished)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_resume(finished, world, monkeypatch, number):
    out = world / f"interrupted{number}"
    process = launch(world, out)
    wait_for(lambda: (out / "checkpoint-8" / "manifest.json").exists(), process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    last = stderr.strip().splitlines()[-1]
    step = checkpoint.output_state(out).step
    assert f"interrupted: saved step {step}; resume with: python {RECIPE} --config" in last
    assert last.endswith("--resume") and "Traceback" not in stderr and stdout == ""
    run(monkeypatch, world, out, "--resume")
    assert checkpoint.weights_sha256(out) == checkpoint.weights_sha256(finished)


@pytest.mark.slow
def test_two_processes(finished, world):
    """The shipped cpu.yaml really starts two, and they learn what one learns."""
    out = world / "two"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "recipes/accelerate/cpu.yaml"), "--main_process_port", "0"]
    command += argv(world, out, "--per_device_train_batch_size", "4", "--save_steps", "100")
    done = subprocess.run(command, env=env, text=True, capture_output=True, cwd=world, check=False)
    assert done.returncode == 0, done.stderr
    assert checkpoint.read_lineage(out)["hardware"]["processes"] == 2
    assert done.stderr.count("preflight: model:") == 1, "one process speaks"
    one, two = (r[-1]["eval_loss"] for r in (metrics(finished), metrics(out)))
    assert two == pytest.approx(one, rel=0.05)
    assert metrics(out)[-1]["step"] == metrics(finished)[-1]["step"]
    tokens = [checkpoint.read_lineage(f)["tokens"] for f in (finished, out)]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.1), "each sees its own half of the data"


def test_processes_that_do_not_know_each_other(monkeypatch):
    from types import SimpleNamespace

    from align.training import check_processes

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        RunError, match="2 processes were launched but accelerate sees 1; launch with"
    ):
        check_processes(SimpleNamespace(num_processes=1))
    check_processes(SimpleNamespace(num_processes=2))


def test_lora(finished, world, monkeypatch):
    out = world / "lora"
    run(
        monkeypatch,
        world,
        out,
        "--use_peft",
        "--lora_r",
        "4",
        "--learning_rate",
        "1e-2",
        "--save_steps",
        "10",
    )
    info = checkpoint.inspect_checkpoint(out)
    assert info.kind == "adapter" and info.base == str(world / "base")
    rows = metrics(out)
    assert rows[-2]["loss"] < rows[0]["loss"]
    model = checkpoint.load_causal(str(out)).model
    base = checkpoint.load_causal(str(world / "base")).model
    assert not torch.equal(
        model.model.layers[0].self_attn.q_proj.weight, base.model.layers[0].self_attn.q_proj.weight
    )
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_a_loss_that_is_nan_stops_and_saves_nothing(world, monkeypatch):
    from align import sft

    def broken(self, *args, **kwargs):
        return super(sft.Trainer, self).compute_loss(*args, **kwargs) * float("nan")

    monkeypatch.setattr(sft.Trainer, "compute_loss", broken)
    with pytest.raises(RunError, match="the loss is nan at step 5"):
        run(monkeypatch, world, world / "nan")
    assert checkpoint.newest_complete(world / "nan") is None


def test_a_full_disk_leaves_the_checkpoint_before(finished, world, monkeypatch):
    import safetensors.torch
    from transformers import modeling_utils

    real, saves = modeling_utils.safe_save_file, []

    def full(tensors, path, **options):
        saves.append(path)
        if len(saves) == 2:
            Path(path).write_bytes(b"half")
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, **options)

    monkeypatch.setattr(modeling_utils, "safe_save_file", full)
    with pytest.raises(RunError, match=r"No space left on device.; checkpoint-8 is intact"):
        run(monkeypatch, world, world / "full")
    assert checkpoint.newest_complete(world / "full").name == "checkpoint-8"
    monkeypatch.setattr(modeling_utils, "safe_save_file", real)
    run(monkeypatch, world, world / "full", "--resume")
    assert checkpoint.weights_sha256(world / "full") == checkpoint.weights_sha256(finished)


def test_the_loss_does_not_depend_on_skipping_unlabelled_positions(world, monkeypatch):
    """`score_labels_only` changes the speed of TRL's head, not its numbers."""
    import trl.trainer.utils as utils
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = checkpoint.load_tokenizer(str(world / "base"), chat_template="plain")
    rows = tokenised(tiny.sums(8), tokenizer).rows
    losses = []
    for skip in (True, False):
        model = checkpoint.load_causal(str(world / "base")).model.train()
        utils.add_fused_lm_head(model)
        monkeypatch.setattr(utils, "_use_triton", lambda device, skip=skip: skip)
        batch = DataCollatorForLanguageModeling(tokenizer.pad_token_id)(rows)
        loss = model(**batch, fused_lm_head=True).loss
        loss.backward()
        losses.append((loss.item(), model.get_input_embeddings().weight.grad))
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)
    assert torch.allclose(losses[0][1], losses[1][1], atol=1e-6)


# ---------------------------------------------------------------- rows


def tokenised(records, tokenizer, **changes):
    from align import sft

    options = {"reasoning": "plain", "max_length": 128, "eos_ids": [tokenizer.eos_token_id]}
    return sft.tokenise(records, tokenizer, **{**options, **changes})


def test_the_completion_and_eos_are_trained_and_nothing_else():
    tokenizer = tiny.tokenizer(template=tiny.PLAIN)
    records = tiny.sums(20)
    rows, overlong = tokenised(records, tokenizer)
    assert overlong == 0 and len(rows) == 20
    for record, row in zip(records, rows, strict=True):
        trained = [label for label in row["labels"] if label != -100]
        start = len(row["labels"]) - len(trained)
        assert (
            row["labels"][start:] == row["input_ids"][start:]
            and trained[-1] == tokenizer.eos_token_id
        )
        assert (
            tokenizer.decode(row["input_ids"][:start]) == f"User: {record['prompt']}\nAssistant:\n"
        )
        answer = f"{record['reasoning']} The answer is {record['answer']}.<eos>"
        assert tokenizer.decode(trained) == answer.strip()


def test_reasoning_can_be_tagged_or_left_out():
    tokenizer = tiny.tokenizer(template=tiny.PLAIN)
    record = tiny.sums(2)[1:]
    texts = {
        r: tokenizer.decode(tokenised(record, tokenizer, reasoning=r).rows[0]["input_ids"])
        for r in ("think", "none")
    }
    assert "<think>" in texts["think"] and record[0]["reasoning"] not in texts["none"]


def test_overlong_records_are_left_out_and_counted_never_cut():
    tokenizer = tiny.tokenizer(template=tiny.PLAIN)
    long = {**tiny.sums(1)[0], "answer": "two " * 200}
    rows, overlong = tokenised([*tiny.sums(3), long], tokenizer)
    assert (len(rows), overlong) == (3, 1)
    assert all(row["labels"][-1] == tokenizer.eos_token_id for row in rows)


def test_nothing_fits(world, monkeypatch):
    with pytest.raises(DataError, match=r"none of the .* records fits into max_length 5"):
        run(monkeypatch, world, world / "short", "--max_length", "5")


def test_what_a_template_writes_after_eos_is_cut():
    template = tiny.PLAIN.replace("+ eos_token", "+ eos_token + '\\n'")
    tokenizer = tiny.tokenizer(template=template)
    assert tokenised(tiny.sums(1), tokenizer).rows[0]["labels"][-1] == tokenizer.eos_token_id


def test_a_template_without_eos_is_refused():
    tokenizer = tiny.tokenizer(template=tiny.PLAIN.replace("+ eos_token", ""))
    with pytest.raises(
        CheckpointError, match=r"is no EOS .'<eos>'., so the model would never learn to stop"
    ):
        tokenised(tiny.sums(1), tokenizer)


def test_a_template_that_changes_the_prompt_is_refused():
    template = "{{ messages | length }}" + tiny.PLAIN
    with pytest.raises(
        CheckpointError, match="renders a prompt differently when a completion follows"
    ):
        tokenised(tiny.sums(1), tiny.tokenizer(template=template))


def test_the_prompts_tokens_are_those_of_generation():
    """A word that merges across the boundary must not swallow the end of the prompt."""
    ended = "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    template = "{% for m in messages %}{{ m.content }}" + ended + "{% endfor %}"
    tokenizer = tiny.tokenizer(template=template)
    record = {"prompt": "how many app", "answer": "les", "answer_format": "{answer}"}
    row = tokenised([record], tokenizer).rows[0]
    before = tokenizer("how many app", add_special_tokens=False)["input_ids"]
    assert row["input_ids"][: len(before)] == before
    assert row["labels"][: len(before)] == [-100] * len(before)
    assert tokenizer.decode(row["input_ids"]) == "how many apples<eos>"


def test_other_data_underneath_are_not_mixed_in(world, monkeypatch):
    """A run that is resumed after its records changed; with the old ones it goes on."""
    from align.errors import ConfigError

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    out, file = world / "mixed", world / "sums.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        from align import training

        patch.setattr(training, "finish_run", die)
        run(patch, world, out)
    before = file.read_text()
    file.write_text("".join(before.splitlines(keepends=True)[:-5]))
    with pytest.raises(ConfigError, match=r"mixed can't be resumed: data .*sums.jsonl changed"):
        run(monkeypatch, world, out, "--resume")
    file.write_text(before)
    run(monkeypatch, world, out, "--resume")


def test_a_misspelled_layer_is_a_line(world, monkeypatch):
    from align.errors import ConfigError

    with pytest.raises(ConfigError, match=r"names q_porj, .*did you mean q_proj\?"):
        run(monkeypatch, world, world / "typo", "--use_peft", "--lora_target_modules", "[q_porj]")
    assert not (world / "typo").exists()
