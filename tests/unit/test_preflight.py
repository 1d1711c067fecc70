"""Every mistake that can be found before weights are loaded: message, exit code, no file."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import tiny

from align import checkpoint, preflight, room
from align.config import PPOStage, RewardStage, SFTStage
from align.errors import CheckpointError, ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world(tmp_path):
    tiny.checkpoint(tmp_path / "base")
    write(
        tmp_path / "sums.jsonl",
        [{"prompt": f"{i} plus 1", "answer": str(i + 1)} for i in range(30)],
    )
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(world, cls=SFTStage, **changes):
    values = {
        "model_name_or_path": str(world / "base"),
        "chat_template": "plain",
        "datasets": {str(world / "sums.jsonl"): 1.0},
        "output_dir": str(world / "out"),
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "max_length": 128,
    }
    return cls(**{**values, **changes})


def test_what_will_be_done_is_said(world, capsys):
    found = preflight.preflight(config(world))
    assert not found.finished
    err = capsys.readouterr().err
    assert [f"preflight: {line}" for line in found.lines] == [
        line for line in err.splitlines() if line.startswith("preflight: ")
    ]
    for said in (
        "out, new",
        "LlamaForCausalLM, 28,800 parameters, float32, context 256",
        "plain.jinja; it ends a completion with '<eos>'",
        "PAD '<pad>', EOS '<eos>': apart",
        "sums.jsonl: 30 rows, all valid",
        "machine memory",
    ):
        assert said in err.replace(f"{world}/", "")
    assert not (world / "out").exists()


def test_only_rank_0_speaks(world, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    preflight.preflight(config(world))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("pad", "said"),
    [
        (None, "PAD '<pad>' (a new token; there was no PAD), EOS '<eos>'"),
        ("<eos>", "PAD '<pad>' (a new token; PAD was '<eos>'), EOS '<eos>'"),
    ],
)
def test_pad_equal_to_eos_is_said_not_failed(world, pad, said):
    tiny.checkpoint(world / "classic", pad=pad)
    found = preflight.preflight(config(world, model_name_or_path=str(world / "classic")))
    assert any(said in line for line in found.lines)


def no_weights(world):
    (world / "base" / "model.safetensors").unlink()


def truncated(world):
    file = world / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def wrong_architecture(world):
    tiny.edit_json(world / "base" / "config.json", architectures=["BertForMaskedLM"])


def another_tokenizer(world):
    tiny.llama(100, 1, 0).save_pretrained(world / "base")


def no_eos(world):
    tiny.edit_json(world / "base" / "tokenizer_config.json", eos_token=None)
    tiny.edit_json(world / "base" / "generation_config.json", eos_token_id=None)
    tiny.edit_json(world / "base" / "config.json", eos_token_id=None)


def template_without_eos(world):
    (world / "mute.jinja").write_text(tiny.PLAIN.replace("+ eos_token", ""))


def template_that_changes(world):
    (world / "moody.jinja").write_text("{{ messages | length }}" + tiny.PLAIN)


def other_parent_template(world):
    (world / "base" / "lineage.json").write_text('{"chat_template_sha256": "0"}')


def empty_prompt(world):
    write(world / "sums.jsonl", [{"prompt": "", "answer": "1"}] * 3)


def empty_completion(world):
    rows = [{"prompt": f"{i} plus 1", "answer": str(i + 1)} for i in range(10)]
    write(world / "sums.jsonl", [*rows, {"prompt": "2 plus 2", "answer": " "}])


def broken_json(world):
    with (world / "sums.jsonl").open("a") as stream:
        stream.write('{"prompt": \n')


def foreign_output(world):
    (world / "out").mkdir()
    (world / "out" / "thesis.tex").write_text("")


def output_file(world):
    (world / "out").write_text("")


def nothing(world):
    pass


BAD = [
    (no_weights, {}, CheckpointError, "base holds no weights"),
    (truncated, {}, CheckpointError, "model.safetensors is truncated: .* bytes found, .* expected"),
    (wrong_architecture, {}, CheckpointError, "holds BertForMaskedLM; this needs a language model"),
    (another_tokenizer, {}, CheckpointError, "ids up to .* embedding 100 rows"),
    (no_eos, {}, CheckpointError, "names no EOS token"),
    (
        nothing,
        {"chat_template": None},
        CheckpointError,
        "no chat template: it is a base model; give one with --chat_template plain",
    ),
    (nothing, {"chat_template": "fancy"}, ConfigError, "no chat template 'fancy'"),
    (
        template_without_eos,
        {"chat_template": "HERE/mute.jinja"},
        CheckpointError,
        "no EOS .*never learn to stop",
    ),
    (
        template_that_changes,
        {"chat_template": "HERE/moody.jinja"},
        CheckpointError,
        "renders a prompt differently",
    ),
    (other_parent_template, {}, CheckpointError, "not the one that .* was trained with"),
    (
        nothing,
        {"max_length": 300},
        ConfigError,
        r"max_length 300 is longer than the context of .* \(256 tokens\)",
    ),
    (
        nothing,
        {"model_name_or_path": "runs/none/sft"},
        CheckpointError,
        "no checkpoint at runs/none/sft",
    ),
    (
        nothing,
        {"model_name_or_path": "nobody/nothing"},
        CheckpointError,
        "hf download nobody/nothing",
    ),
    (nothing, {"datasets": {"HERE/none.jsonl": 1.0}}, DataError, "none.jsonl"),
    (empty_prompt, {}, DataError, "empty prompt 3 .rows 1, 2, 3"),
    (empty_completion, {}, DataError, "1 of 11 rows are invalid.*row 11"),
    (broken_json, {}, DataError, "31"),
    (foreign_output, {}, ConfigError, "out holds files that are no run of align"),
    (output_file, {}, ConfigError, "output_dir .*out is a file"),
    (nothing, {"learning_rate": 0.0}, ConfigError, "learning_rate is 0.0; it must be above 0"),
    (nothing, {"eval_fraction": 1.0}, ConfigError, "eval_fraction is 1.0"),
    (nothing, {"load_in_4bit": True}, ConfigError, "needs use_peft: true"),
    (nothing, {"packing": True}, ConfigError, "packing with attn_implementation sdpa"),
]


@pytest.mark.parametrize(
    ("damage", "changes", "error", "message"),
    BAD,
    ids=[f"{b[0].__name__}-{i}" for i, b in enumerate(BAD)],
)
def test_bad_input(world, damage, changes, error, message):
    damage(world)
    filled = json.loads(json.dumps(changes).replace("HERE", str(world)))
    before = sorted(world.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        preflight.preflight(config(world, **filled))
    assert caught.value.exit_code == 2
    assert sorted(world.rglob("*")) == before, "nothing half-written"


def test_chosen_equal_to_rejected(world):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2
    pairs = write(world / "pairs.jsonl", rows)
    with pytest.raises(DataError, match=r"chosen.*rejected.*rows 1, 2"):
        preflight.preflight(config(world, RewardStage, datasets={str(pairs): 1.0}))


def test_a_run_in_the_output_folder(world):
    made = config(world)
    checkpoint.begin_run(made)
    with pytest.raises(
        ConfigError, match="holds an interrupted run of sft; give --resume, --overwrite"
    ):
        preflight.preflight(made)
    resumed = preflight.preflight(config(world, resume=True))
    assert "from the start (nothing was saved yet)" in resumed.lines[0]
    (world / "out" / "checkpoint-5").mkdir()  # killed while it was written
    resumed = preflight.preflight(config(world, resume=True))
    assert "from the start (no checkpoint was written to its end)" in resumed.lines[0]
    with checkpoint.atomic_dir(world / "out" / "checkpoint-7") as folder:
        (folder / "weights").write_text("1")
    assert "resumed from checkpoint-7" in preflight.preflight(config(world, resume=True)).lines[0]
    (world / "out" / "checkpoint-7" / "weights").write_text("2")
    with pytest.raises(CheckpointError, match=r"checkpoint-7 is damaged: .*with --overwrite"):
        preflight.preflight(config(world, resume=True))
    with pytest.raises(ConfigError, match=r"another recipe \(seed: 0 -> 5\)"):
        preflight.preflight(config(world, resume=True, seed=5))
    over = preflight.preflight(config(world, overwrite=True, seed=5))
    assert "will be deleted (--overwrite)" in over.lines[0]
    assert (world / "out" / "run.json").exists(), "looking deletes nothing"
    with pytest.raises(ConfigError, match="stage: sft -> reward"):
        preflight.check_output(config(world, RewardStage, resume=True), print)


def test_a_full_disk(world, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage(10, 9, 100_000))
    with pytest.raises(ConfigError, match="98 KiB free and three checkpoints of sft need 1012 KiB"):
        preflight.preflight(config(world))


def test_too_little_memory(world, monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: (1000, "GPU"))
    with pytest.raises(ConfigError, match="of GPU memory are free; use --use_peft true"):
        preflight.preflight(config(world))


def test_the_estimate_counts_what_is_trained(world):
    info = checkpoint.inspect_checkpoint(world / "base")
    full, lora = (room.estimate(config(world, use_peft=p), info) for p in (False, True))
    assert full.state == 16 * info.parameters and full.checkpoint == 12 * info.parameters
    assert lora.state < full.state and lora.checkpoint < full.checkpoint
    light = room.estimate(config(world, gradient_checkpointing=True), info)
    assert light.activations * info.layers == full.activations


def test_the_estimate_of_ppo_counts_both_networks_that_learn(world):
    info = checkpoint.inspect_checkpoint(world / "base")
    rule = {"reward_functions": {"x:y": 1.0}, "total_episodes": 1, "max_completion_length": 8}
    full = room.estimate(config(world, PPOStage, **rule), info)
    assert full.checkpoint == 2 * 12 * info.parameters
    assert full.state == (3 * 4 + 2 * 12) * info.parameters
    kept = room.estimate(config(world, PPOStage, ema_decay=0.9, kl_budget=9.0, **rule), info)
    assert kept.checkpoint == full.checkpoint + 2 * 4 * info.parameters


def test_the_reward_model_of_ppo(world):
    lost = {"reward_model", "gold_reward_model"} - set(PPOStage.__dataclass_fields__)
    assert not lost
    with pytest.raises(CheckpointError, match="needs a reward model"):
        preflight.check_reward_model(str(world / "base"), print)


def test_exit_code_one_line_and_two_seconds(world):
    """As a person meets it."""
    (world / "base" / "model.safetensors").unlink()
    command = [sys.executable, str(ROOT / "recipes" / "sft.py"), "--output_dir", str(world / "out")]
    command += ["--model_name_or_path", str(world / "base")]
    done = subprocess.run(
        command,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("preflight: ")]
    assert len(said) == 1 and said[0].startswith("error: ") and "holds no weights" in said[0]
    assert not (world / "out").exists()


def test_stories260k(align_data, tmp_path):
    write(tmp_path / "sums.jsonl", [{"prompt": "1 plus 1", "answer": "2"}])
    model = str(align_data / "models" / "stories260K-hf")
    found = preflight.preflight(config(tmp_path, model_name_or_path=model))
    assert any("PAD was '</s>'" in line and "EOS '</s>', '<s>'" in line for line in found.lines)


def test_a_parent_that_an_earlier_stage_will_make(world):
    made = config(world, model_name_or_path=str(world / "sft"))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        preflight.preflight(made)
    found = preflight.preflight(made, made_before=[str(world / "sft")])
    assert any("which an earlier stage makes" in line for line in found.lines)


# ---------------------------------------------------------------- how it is launched


def ppo(world, **changes):
    return config(world, PPOStage, reward_functions={"m:f": 1.0}, total_episodes=8,
                  max_completion_length=8, **changes)  # fmt: skip


@pytest.mark.parametrize(
    "file, stage, message",
    [
        ("zero3.yaml", "sft", "asks for DeepSpeed, which is not installed; pip install deepspeed"),
        ("zero3.yaml", "ppo", "PPO does not run under DeepSpeed: .*fsdp2.yaml"),
        ("fsdp2.yaml", "4bit", "load_in_4bit packs weights"),
        ("fsdp2.yaml", "ppo", None),
        ("fsdp2.yaml", "sft", None),
        ("ddp.yaml", "ppo", None),
    ],
)
def test_modes_that_a_stage_can_not_run_in(world, file, stage, message, monkeypatch):
    launch = preflight.launched_as(ROOT / "recipes/accelerate" / file)
    stages = {"sft": config(world), "ppo": ppo(world)}
    stages["4bit"] = ppo(world, use_peft=True, load_in_4bit=True)
    if message is None:
        return preflight.check_launch(stages[stage], launch)
    with pytest.raises(ConfigError, match=message):
        preflight.check_launch(stages[stage], launch)
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):  # in the process that accelerate started
        preflight.preflight(stages[stage])


def test_fsdp_1_is_refused_by_ppo(world):
    launch = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}
    with pytest.raises(ConfigError, match="asks for version 1; set fsdp_version: 2"):
        preflight.check_launch(ppo(world), launch)


def test_the_zero3_config_is_what_accelerates_plugin_takes(monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DeepSpeedPlugin

    values = load_config_from_file(str(ROOT / "recipes/accelerate/zero3.yaml")).deepspeed_config
    assert values["zero_stage"] == 3 and values["gradient_accumulation_steps"] == "auto"
    plugin = DeepSpeedPlugin(
        zero_stage=values["zero_stage"],
        zero3_init_flag=values["zero3_init_flag"],
        zero3_save_16bit_model=values["zero3_save_16bit_model"],
        offload_optimizer_device=values["offload_optimizer_device"],
        offload_param_device=values["offload_param_device"],
    )
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == 3 and zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert zero["offload_optimizer"]["device"] == "none"


def test_deepspeed_that_is_missing_is_one_line_and_exit_2(world):
    """Under torchrun; `align run` says the same before it launches anything."""
    environment = {**os.environ, "ACCELERATE_USE_DEEPSPEED": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "recipes/sft.py")]
    command += ["--model_name_or_path", str(world / "base"), "--output_dir", str(world / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the launcher asks for DeepSpeed") and "pip install" in line
    run = [sys.executable, "-m", "align.cli", "run", "quickstart", "--output", str(world / "run")]
    run += ["--accelerate-config", "zero3.yaml"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: the launcher asks for DeepSpeed" in done.stderr.splitlines()[-1]
    assert not (world / "out").exists() and not (world / "run/sft").exists()
