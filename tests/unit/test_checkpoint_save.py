"""Folders that are whole or not there, output directories, lineage, paths that travel."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import tiny
import torch

from align import checkpoint
from align.checkpoint import output
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


def test_a_file_of_torch_that_a_full_disk_cut_short_is_no_checkpoint(tmp_path):
    """torch.save, given a path, loses the last bytes of a file without a word."""
    with (
        pytest.raises(OSError, match="No space left"),
        checkpoint.atomic_dir(tmp_path / "x") as tmp,
    ):
        torch.save({"a": torch.ones(99)}, tmp / "optimizer.pt")
        os.truncate(tmp / "optimizer.pt", (tmp / "optimizer.pt").stat().st_size - 9)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "error, why",
    [
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "No space left"),
        (RuntimeError("[enforce fail at c.cc:672] . unexpected pos 8 vs 6"), "No space left"),
        (RuntimeError("I/O error: File too large (os error 27)"), "File too large"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_told_in_our_words(error, why):
    from align.checkpoint.save import disk_errors
    from align.errors import verdict

    with pytest.raises(RunError, match=why) as caught, disk_errors("runs/x"):
        raise error
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


# ---------------------------------------------------------------- kills between two system calls

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def killed_at(event: int, folder: Path, work) -> bool:
    """Do ``work`` in a process that is gone at its n-th touch of the folder; False: it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    seen = iter(range(event))

    def hook(name: str, args: tuple) -> None:
        if name in EVENTS and str(folder) in str(args[0]) and next(seen, None) is None:
            os._exit(9)

    sys.addaudithook(hook)
    work()
    os._exit(0)


def at_every_event(folder: Path, prepare, work):
    """Kill ``work`` at each of its touches of the folder in turn; yields after every kill."""
    for event in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        prepare()
        if not killed_at(event, folder, work):
            assert event > 2, "nothing was killed"
            return
        yield event
    raise AssertionError("it never ended")


def save_again(folder: Path, text: str) -> None:
    with checkpoint.atomic_dir(folder / "checkpoint-5") as tmp:
        fill(tmp, text)


def test_a_kill_while_a_checkpoint_is_replaced_leaves_the_old_or_the_new_one(tmp_path):
    """The same step is saved twice where Ctrl-C or the KL budget ends a run."""
    folder, found = tmp_path / "run", set()

    def prepare() -> None:
        checkpoint.begin_run(config(folder))
        save_again(folder, "old")

    for event in at_every_event(folder, prepare, lambda: save_again(folder, "new")):
        newest = checkpoint.newest_complete(folder)
        assert newest is not None, event
        found.add((newest / "model.safetensors").read_text())
        assert checkpoint.output_state(folder).step == 5
        assert checkpoint.begin_run(config(folder, resume=True)) == newest
        save_again(folder, "newer")
        names = [p.name for p in folder.glob("checkpoint-*") if p.name != "checkpoint-5.old"]
        assert names == ["checkpoint-5"]
    assert found == {"old", "new"}


def test_a_kill_at_the_start_of_a_run_never_leaves_a_folder_that_is_refused(tmp_path):
    folder = tmp_path / "run"
    begin = lambda **flags: checkpoint.begin_run(config(folder, **flags))  # noqa: E731
    for event in at_every_event(folder, lambda: None, begin):
        state = checkpoint.output_state(folder).state
        assert state in ("empty", "interrupted"), event
        begin(resume=state == "interrupted")


def test_a_kill_during_overwrite_leaves_a_folder_that_can_be_overwritten(tmp_path):
    folder = tmp_path / "run"

    def prepare() -> None:
        checkpoint.begin_run(config(folder))
        with checkpoint.finish_run(folder) as staging:
            fill(staging)
            (staging / "lineage.json").write_text('{"stage": "sft"}')

    overwrite = lambda: checkpoint.begin_run(config(folder, overwrite=True))  # noqa: E731
    for _ in at_every_event(folder, prepare, overwrite):
        assert checkpoint.output_state(folder).state in ("finished", "interrupted")
        overwrite()
        assert [p.name for p in folder.iterdir()] == ["run.json"]


def test_a_kill_while_a_run_is_finished_is_mended(tmp_path):
    folder = tmp_path / "run"

    def prepare() -> None:
        checkpoint.begin_run(config(folder))
        save_again(folder, "weights")

    def finish() -> None:
        with checkpoint.finish_run(folder) as staging:
            fill(staging)
            (staging / "lineage.json").write_text('{"stage": "sft"}')

    for event in at_every_event(folder, prepare, finish):
        if checkpoint.output_state(folder).state == "finished":
            output.tidy(folder)
        else:
            assert checkpoint.newest_complete(folder) is not None, event
            finish()
        assert sorted(p.name for p in folder.iterdir()) == ["lineage.json", "model.safetensors"]


def test_a_damaged_checkpoint_is_never_taken_for_no_checkpoint(tmp_path):
    checkpoint.begin_run(config(tmp_path))
    save_again(tmp_path, "weights")
    (tmp_path / "checkpoint-5/model.safetensors").write_text("bit rot")
    with pytest.raises(CheckpointError, match=r"checkpoint-5 is damaged: .*--overwrite"):
        checkpoint.begin_run(config(tmp_path, resume=True))
    assert (tmp_path / "checkpoint-5").is_dir()
    with checkpoint.atomic_dir(tmp_path / "checkpoint-4") as older:
        fill(older)
    found = output.resumable(tmp_path)
    assert [p.name for p in found] == ["checkpoint-4", "checkpoint-5"]
    assert checkpoint.begin_run(config(tmp_path, resume=True)).name == "checkpoint-4"
