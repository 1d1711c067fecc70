"""Folders that are whole or not there, output directories, lineage, paths that travel."""

import json
import os
from pathlib import Path

import pytest
import tiny

from align import checkpoint
from align.checkpoint.save import located, portable
from align.config import SFTStage
from align.errors import CheckpointError, ConfigError, RunError


def config(folder, **changes):
    values = {
        "model_name_or_path": "base",
        "datasets": {"x": 1.0},
        "output_dir": str(folder),
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
    }
    return SFTStage(**{**values, **changes})


def fill(folder: Path, text="weights"):
    (folder / "model.safetensors").write_text(text)


def test_atomic_dir_appears_whole(tmp_path):
    with checkpoint.atomic_dir(tmp_path / "checkpoint-1") as folder:
        fill(folder)
        assert not (tmp_path / "checkpoint-1").exists()
    assert checkpoint.is_complete(tmp_path / "checkpoint-1")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_atomic_dir_that_fails_leaves_the_old_one(tmp_path):
    with checkpoint.atomic_dir(tmp_path / "checkpoint-1") as folder:
        fill(folder, "old")
    with (
        pytest.raises(OSError, match="full"),
        checkpoint.atomic_dir(tmp_path / "checkpoint-1") as folder,
    ):
        fill(folder, "new")
        raise OSError("disk full")
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    with checkpoint.atomic_dir(tmp_path / "checkpoint-1") as folder:
        fill(folder, "new")
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == "new"


@pytest.mark.parametrize("damage", ["no manifest", "cut", "changed", "missing"])
def test_only_complete_folders_count(tmp_path, damage):
    for step in (9, 10, 100):
        with checkpoint.atomic_dir(tmp_path / f"checkpoint-{step}") as folder:
            fill(folder)
    newest = tmp_path / "checkpoint-100"
    assert checkpoint.newest_complete(tmp_path) == newest
    file = newest / ("manifest.json" if damage == "no manifest" else "model.safetensors")
    if damage in ("no manifest", "missing"):
        file.unlink()
    else:
        file.write_text("" if damage == "cut" else "WEIGHTS")
    assert not checkpoint.is_complete(newest)
    assert checkpoint.newest_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert checkpoint.newest_complete(tmp_path / "nowhere") is None


def test_a_new_run_then_a_resumed_one(tmp_path):
    folder = tmp_path / "sft"
    assert checkpoint.output_state(folder).state == "empty"
    assert checkpoint.begin_run(config(folder)) is None
    assert checkpoint.output_state(folder).state == "interrupted"
    with pytest.raises(ConfigError, match="holds an interrupted run of sft; give --resume"):
        checkpoint.begin_run(config(folder))
    with checkpoint.atomic_dir(folder / "checkpoint-5") as tmp:
        fill(tmp)
    (folder / "checkpoint-7").mkdir()  # killed while it was written
    found = checkpoint.output_state(folder, config(folder, learning_rate=2e-3))
    assert found.step == 5 and found.differs == ("learning_rate: 0.001 -> 0.002",)
    assert checkpoint.begin_run(config(folder, resume=True)) == folder / "checkpoint-5"
    assert not (folder / "checkpoint-7").exists()
    assert checkpoint.begin_run(config(folder, overwrite=True)) is None
    assert sorted(p.name for p in folder.iterdir()) == ["run.json"]


def test_a_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigError, match="holds files that are no run of align"):
            checkpoint.begin_run(config(tmp_path, **flags))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_finish_run_puts_the_lineage_last(tmp_path, monkeypatch):
    folder = tmp_path / "sft"
    checkpoint.begin_run(config(folder))
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    with checkpoint.finish_run(folder) as staging:
        (staging / "lineage.json").write_text('{"stage": "sft"}')
        fill(staging)
        (staging / "tokenizer.json").write_text("{}")
    assert moved[-1] == "lineage.json"
    assert checkpoint.output_state(folder).state == "finished"
    assert sorted(p.name for p in folder.iterdir()) == [
        "lineage.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_finish_run_that_is_killed_stays_interrupted(tmp_path):
    folder = tmp_path / "sft"
    checkpoint.begin_run(config(folder))
    with pytest.raises(KeyboardInterrupt), checkpoint.finish_run(folder) as staging:
        fill(staging)
        raise KeyboardInterrupt
    assert checkpoint.output_state(folder).state == "interrupted"
    assert not (folder / "model.safetensors").exists()


def test_lineage(tmp_path):
    base = tiny.checkpoint(tmp_path / "base")
    child = tiny.checkpoint(tmp_path / "child", template=tiny.PLAIN)
    tokenizer = checkpoint.load_tokenizer(str(child))
    made = config(child, model_name_or_path=str(base))
    checkpoint.write_lineage(
        child,
        stage="sft",
        config=made,
        parent=str(base),
        started=0.0,
        tokens=7,
        data=[{"card": "x", "rows": 3, "sha256": "0"}],
        tokenizer=tokenizer,
        extra={"held_out": {}},
    )
    found = checkpoint.read_lineage(child)
    assert found["parent"]["weights_sha256"] == checkpoint.weights_sha256(base)
    assert found["weights_sha256"] == checkpoint.weights_sha256(child)
    assert found["chat_template_sha256"] == checkpoint.chat_template_sha256(tiny.PLAIN)
    assert found["recipe_sha256"] == checkpoint.recipe_sha256(made)
    assert {
        "data",
        "seed",
        "versions",
        "hardware",
        "wall_seconds",
        "tokens",
        "code_version",
        "energy_kwh",
    } <= set(found)
    assert checkpoint.read_lineage(base) == {}
    (child / "lineage.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        checkpoint.read_lineage(child)


def test_the_recipe_hash_sees_what_is_learnt_only():
    one = checkpoint.recipe_sha256(config("a"))
    assert one == checkpoint.recipe_sha256(
        config("b", resume=True, save_steps=3, report_to=["wandb"])
    )
    assert one != checkpoint.recipe_sha256(config("a", learning_rate=2e-3))
    assert one != checkpoint.recipe_sha256(config("a", seed=1))


def test_manifest_lists_subfolders(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    fill(tmp_path / "a" / "b")
    checkpoint.write_manifest(tmp_path)
    assert list(json.loads((tmp_path / "manifest.json").read_text())["files"]) == [
        "a/b/model.safetensors"
    ]


@pytest.mark.parametrize(
    "words",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0",
    ],
)
def test_a_full_disk_is_told_in_our_words(words):
    from align.checkpoint.save import disk_errors
    from align.errors import verdict

    with pytest.raises(RunError, match="No space left") as caught, disk_errors("runs/x"):
        raise RuntimeError(words)
    line, code = verdict(caught.value)
    assert "the disk is full while writing in runs/x" in line and code == 1
    assert "nothing was saved yet; free some space, then: " in line
    with pytest.raises(RuntimeError, match="something else"), disk_errors("runs/x"):
        raise RuntimeError("something else")


def test_paths_are_those_that_the_checkpoint_sees(tmp_path, monkeypatch):
    for stage in ("sft", "ppo"):
        (tmp_path / "run" / stage).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    values = {"parent": {"path": "run/sft"}, "cards": [str(tmp_path / "run")], "hub": "org/model"}
    found = portable({**values, "template": "plain"}, Path("run/ppo"))
    assert found == {
        "parent": {"path": "../sft"},
        "cards": [".."],
        "hub": "org/model",
        "template": "plain",
    }
    there = located(found, Path("run/ppo"))
    assert Path(there["parent"]["path"]).samefile("run/sft")
    assert there["hub"] == "org/model"
