"""What a recipe needs, from configs and headers only."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from align import paths, plan
from align.config import PPOStage, RewardStage, SFTStage
from align.errors import ConfigError
from align.plan import command, memory
from align.report.tables import terminal
from tests import fake_run

LLAMA_8B = plan.Shape(
    hidden=4096, layers=32, kv_width=1024, intermediate=14336, vocabulary=128256, tied=False,
    q_width=4096,
)  # fmt: skip


def sft(**values: Any) -> SFTStage:
    given = {
        "model_name_or_path": "m",
        "datasets": {"d": 1.0},
        "output_dir": "nowhere/sft",
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 4,
        "max_steps": 10,
    }
    return SFTStage(**(given | values))


def test_parameters_of_a_known_architecture() -> None:
    assert LLAMA_8B.parameters() == 8_030_261_248  # the published count


def test_parameters_equal_those_of_the_weights(tmp_path: Path) -> None:
    fake_run.write_checkpoint(tmp_path)
    shape = plan.shape_of(str(tmp_path))
    assert shape is not None
    size = (tmp_path / "model.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert shape.parameters() * 4 == size - 8 - header


def test_full_training_holds_four_times_the_weights() -> None:
    parts, _ = memory.memory(sft(), LLAMA_8B)
    weights = 4 * LLAMA_8B.parameters()
    assert parts == {"weights": weights, "gradients": weights, "optimizer": 2 * weights}


def test_lora_trains_little_and_holds_little() -> None:
    config = sft(use_peft=True, lora_r=16, dtype="bfloat16")
    assert memory.trainable(config, LLAMA_8B) == 41_943_040  # r 16, all linear layers
    parts, _ = memory.memory(config, LLAMA_8B)
    assert parts["optimizer"] < 0.02 * parts["weights"]
    quantised, _ = memory.memory(sft(use_peft=True, load_in_4bit=True), LLAMA_8B)
    assert quantised["weights"] < 0.3 * parts["weights"]


def test_adapters_in_half_of_the_layers_train_half_and_hold_the_states_below() -> None:
    all_of_them, half = sft(use_peft=True), sft(use_peft=True, lora_layers=16)
    assert LLAMA_8B.layers == 32
    assert 2 * memory.trainable(half, LLAMA_8B) == memory.trainable(all_of_them, LLAMA_8B)
    assert 2 * memory.activations(half, LLAMA_8B) == memory.activations(all_of_them, LLAMA_8B)
    values = {
        "model_name_or_path": "x", "datasets": {"x": 1.0}, "output_dir": "x", "learning_rate": 1e-5,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_length": 512,
        "total_episodes": 8, "reward_url": "http://127.0.0.1", "use_peft": True,
    }  # fmt: skip
    parts, _ = memory.memory(PPOStage(**values, lora_layers=16), LLAMA_8B)
    assert parts["trunk's states"] == 4 * 8 * 512 * LLAMA_8B.hidden
    assert "trunk's states" not in memory.memory(PPOStage(**values), LLAMA_8B)[0]


def test_checkpointing_needs_less_and_longer_sequences_more() -> None:
    usual = memory.activations(sft(), LLAMA_8B)
    assert memory.activations(sft(gradient_checkpointing=True), LLAMA_8B) < usual / 10
    assert memory.activations(sft(max_length=1024), LLAMA_8B) == pytest.approx(2 * usual)
    assert memory.activations(sft(bf16=True), LLAMA_8B) == pytest.approx(usual / 2)


def test_a_reward_model_has_no_logits_and_reads_both_sides() -> None:
    values = {k: v for k, v in vars(sft()).items() if k not in ("reasoning", "packing")}
    config = RewardStage(**values)
    assert memory.logits(config, LLAMA_8B) == 0
    assert plan.estimate(config, LLAMA_8B).tokens == 10 * 4 * 2 * 512


def test_time_and_cost_only_where_a_speed_is_known(tmp_path: Path) -> None:
    config = sft(output_dir=str(tmp_path))
    unknown = plan.estimate(config, LLAMA_8B, price_per_hour=2.0)
    assert unknown.seconds is None and unknown.cost is None
    assert any("--tokens-per-second" in note for note in unknown.notes)
    given = plan.estimate(config, LLAMA_8B, tokens_per_second=2.0, price_per_hour=3.6)
    assert given.seconds == pytest.approx(10240)
    assert given.cost == pytest.approx(10.24)
    fake_run.write_json(tmp_path / "lineage.json", {"tokens": 1000, "wall_seconds": 10})
    measured = plan.estimate(config, LLAMA_8B)
    assert measured.seconds == pytest.approx(204.8)
    assert any("100 tokens/s, measured" in note for note in measured.notes)


def test_a_card_without_rows_gives_no_token_count(tmp_path: Path) -> None:
    card = tmp_path / "mine.md"
    card.write_text("---\nalign:\n  kind: prompt-completion\n---\n", encoding="utf-8")
    without = plan.estimate(sft(max_steps=-1, datasets={str(card): 1.0}), None)
    assert without.tokens is None
    assert any("does not say how many rows" in note for note in without.notes)
    limited = sft(max_steps=-1, datasets={str(card): 1.0}, dataset_limit=100)
    assert plan.estimate(limited, None).tokens == 95 * 512


def recipe(folder: Path, model: str) -> str:
    folder.mkdir()
    config = {k: v for k, v in vars(sft()).items() if v is not None}
    config |= {"model_name_or_path": model, "output_dir": "runs/x/sft"}
    (folder / "sft.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    drop = ("reasoning", "packing")
    reward = {k: v for k, v in config.items() if k not in drop}
    reward |= {"model_name_or_path": "runs/x/sft", "output_dir": "runs/x/reward"}
    (folder / "reward.yaml").write_text(yaml.safe_dump(reward), encoding="utf-8")
    return str(folder)


def test_a_chain_is_planned_before_any_of_it_has_run(tmp_path: Path) -> None:
    fake_run.write_checkpoint(tmp_path / "base")
    plans = plan.plan_recipe(recipe(tmp_path / "r", str(tmp_path / "base")))
    assert [p.stage for p in plans] == ["sft", "reward"]
    assert plans[0].parameters == plans[1].parameters is not None
    shown = terminal(plan.table(plans))
    assert "KiB" in shown or "MiB" in shown
    assert "not known" in shown  # time


def test_a_hub_id_that_is_not_here_names_what_is_needed(tmp_path: Path) -> None:
    plans = plan.plan_recipe(recipe(tmp_path / "r", "someone/some-model"))
    assert plans[0].peak is None
    lines = "\n".join(plan.details(plans))
    assert "hf download someone/some-model config.json" in lines
    assert "not known" in terminal(plan.table(plans))


def test_a_chain_from_an_unknown_base_names_the_base(tmp_path: Path) -> None:
    plans = plan.plan_recipe(recipe(tmp_path / "r", "someone/some-model"))
    assert "someone/some-model" in " ".join(plans[1].notes)
    assert "runs/x/sft is not there" not in " ".join(plans[1].notes)


def ppo(**values: Any) -> PPOStage:
    drop = ("reasoning", "packing", "guard_loss_spike", "num_train_epochs", "max_steps")
    given = {k: v for k, v in vars(sft()).items() if k not in drop}
    given |= {"reward_model": "rm", "total_episodes": 100, "num_ppo_epochs": 2}
    return PPOStage(**(given | values))


def test_full_ppo_holds_four_models_and_lora_two() -> None:
    parts, phases = memory.memory(ppo(), LLAMA_8B)
    one = 4 * LLAMA_8B.parameters()
    assert parts["weights"] == 4 * one  # policy, value, reference, reward
    assert parts["optimizer"] == 4 * one  # two moments of policy and value
    assert "rollout: KV cache" in phases
    shared, _ = memory.memory(ppo(use_peft=True), LLAMA_8B)
    assert 2 * one < shared["weights"] < 2.05 * one
    by_rule, _ = memory.memory(
        ppo(use_peft=True, reward_model=None, reward_functions={"m:f": 1.0}), LLAMA_8B
    )
    assert one < by_rule["weights"] < 1.05 * one
    judged, _ = memory.memory(ppo(gold_reward_model="other"), LLAMA_8B)
    assert judged["weights"] == 5 * one
    assert plan.estimate(ppo(), LLAMA_8B).tokens == 100 * 2 * 512


def test_ppos_logits_come_in_the_chunks_that_it_computes() -> None:
    source = (paths.PACKAGE / "ppo" / "models.py").read_text(encoding="utf-8")
    assert f"CHUNK_LOGITS = 2**{memory.PPO_CHUNK_LOGITS.bit_length() - 1}" in source
    assert memory.logits(ppo(), LLAMA_8B) < memory.logits(sft(), LLAMA_8B)


def test_sizes_and_times_read_well() -> None:
    assert command.size_text(1536) == "1.5 KiB"
    assert command.size_text(3 * 1024**3) == "3 GiB"
    assert command.time_text(45) == "45 s"
    assert command.time_text(12_000) == "3 h 20 min"


def test_the_command_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run.write_checkpoint(tmp_path / "base")
    name = recipe(tmp_path / "r", str(tmp_path / "base"))
    plan.main([name, "--set", "sft.max_length=1024", "--tokens-per-second", "100"])
    text = capsys.readouterr().out
    assert "≤ 40,960" in text and "≤ 7 min" in text and "sft: weights" in text
    plan.main([name, "--json"])
    assert [row["stage"] for row in json.loads(capsys.readouterr().out)] == ["sft", "reward"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--price-per-hour", "-1"], "-1 is not above 0"),
        (["--tokens-per-second", "fast"], "'fast' is not a number"),
        (["--set", "max_length=3"], "write --set stage.field=value"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_one_line(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.main(["quickstart", *args])
