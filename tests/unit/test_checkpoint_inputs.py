"""A run is never continued from other weights, data or words than it was started with."""

import json

import pytest
import tiny

from align import checkpoint
from align.checkpoint.lineage import checkpoint_sha256
from align.config import PPOStage
from align.errors import ConfigError


@pytest.fixture
def world(tmp_path, monkeypatch):
    tiny.checkpoint(tmp_path / "sft", template=tiny.PLAIN)
    tiny.checkpoint(tmp_path / "reward", template=tiny.PLAIN, hidden_size=16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**changes) -> PPOStage:
    values = {
        "model_name_or_path": "sft",
        "reward_model": "reward",
        "datasets": {"x": 1.0},
        "output_dir": "out",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "total_episodes": 8,
    }
    return PPOStage(**{**values, **changes})


def begin(rows="a", template=tiny.PLAIN, **changes):
    data = [{"card": "x", "rows": 3, "sha256": rows * 64}]
    made = config(**changes)
    return checkpoint.begin_run(made, checkpoint.inputs(made, data, tiny.tokenizer(None, template)))


def started(world) -> None:
    begin()
    with checkpoint.atomic_dir(world / "out" / "checkpoint-5") as folder:
        (folder / "weights").write_text("1")


def new_weights(world):
    tiny.llama(320, 1, 0, seed=7).save_pretrained(world / "sft")


def new_reward(world):
    tiny.edit_json(world / "reward/config.json", score_offset=3.0)


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        (new_weights, {}, "model_name_or_path sft changed since it was started"),
        (new_reward, {}, "reward_model reward changed since"),
        (None, {"rows": "b"}, "data x changed since .*sha256 aaaaaaaaaaaa then, bbbbbbbbbbbb now"),
        (None, {"template": tiny.PLAIN + " "}, "chat_template changed since"),
    ],
)
def test_what_changed_underneath_is_named_and_nothing_is_touched(world, change, flags, words):
    started(world)
    if change:
        change(world)
    before = (world / "out/run.json").read_text()
    with pytest.raises(ConfigError, match=rf"out can't be resumed: {words}") as caught:
        begin(resume=True, **flags)
    assert caught.value.exit_code == 2 and "--overwrite" in str(caught.value)
    assert (world / "out/run.json").read_text() == before
    assert begin(overwrite=True, **flags) is None


def test_the_same_is_resumed_again_and_again_and_from_another_folder(world, monkeypatch):
    started(world)
    assert begin(resume=True).name == "checkpoint-5"
    monkeypatch.chdir(world / "out")
    there = {"model_name_or_path": "../sft", "reward_model": "../reward", "output_dir": "."}
    assert begin(resume=True, **there).name == "checkpoint-5"
    assert set(json.loads((world / "out/run.json").read_text())["inputs"]) == {
        *("chat_template", "model_name_or_path", "reward_model", "data x"),
    }


def test_before_the_first_checkpoint_nothing_can_be_mixed(world):
    begin()
    assert begin(rows="b", resume=True) is None
    assert json.loads((world / "out/run.json").read_text())["inputs"]["data x"] == "b" * 64


def test_a_run_of_an_earlier_version_is_resumed(world):
    started(world)
    tiny.edit_json(world / "out/run.json", inputs=None)
    assert begin(rows="b", resume=True).name == "checkpoint-5"


def test_the_base_below_an_adapter_counts(world):
    (world / "adapter").mkdir()
    (world / "adapter/adapter_model.safetensors").write_bytes(
        (world / "sft/model.safetensors").read_bytes()
    )
    text = json.dumps({"base_model_name_or_path": str(world / "sft")})
    (world / "adapter/adapter_config.json").write_text(text)
    before = checkpoint_sha256("adapter")
    assert before == checkpoint_sha256(world / "adapter")
    new_weights(world)
    assert checkpoint_sha256("adapter") != before
    assert checkpoint_sha256("nowhere") is None
