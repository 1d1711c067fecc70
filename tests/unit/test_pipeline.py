"""The chain's memory: what is skipped, continued, done again; steps here only leave marks."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align import pipeline, step_keys
from align.errors import ConfigError, RunError


@pytest.fixture
def run(tmp_path: Path) -> pipeline.Run:
    return pipeline.resolve("quickstart", tmp_path / "run", {})


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Steps that write what they would leave behind, and remember that they were carried out."""
    done: list[tuple[str, bool]] = []

    def carry_out(run: pipeline.Run, step: str, going_on: bool) -> None:
        done.append((step, going_on))
        files = [f"eval/{s}/results.json" for s in run.evaluated] if step == "eval" else []
        names = {"tax": "tax.json", "report": "report.html"}
        for file in files or [names.get(step, f"{step}/lineage.json")]:
            path = run.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    def key(name: str) -> str:
        path = Path(name)
        if path.is_absolute() and not (path / "lineage.json").exists():
            raise FileNotFoundError(name)
        return (path / "weights").read_text() if (path / "weights").exists() else name

    monkeypatch.setattr(pipeline, "_carry_out", carry_out)
    monkeypatch.setattr(step_keys, "_checkpoint_key", key)
    monkeypatch.setattr(step_keys, "_card_key", lambda name: name)
    monkeypatch.setattr(pipeline, "_look", lambda *_, **__: None)  # marks are no checkpoints
    return done


def test_stages_are_chained(run: pipeline.Run) -> None:
    assert run.stages["reward"].model_name_or_path == str(run.folder / "sft")
    assert run.stages["ppo"].model_name_or_path == str(run.folder / "sft")
    assert run.stages["ppo"].reward_model == str(run.folder / "reward")
    assert run.steps == ["sft", "reward", "ppo", "eval", "tax", "report"]


def test_everything_runs_once_and_is_unchanged_afterwards(
    run: pipeline.Run, marks: list[Any]
) -> None:
    assert set(pipeline.execute(run).values()) == {"ran"}
    assert set(pipeline.execute(run).values()) == {"unchanged"}
    assert [step for step, _ in marks] == run.steps


def test_a_changed_config_does_that_stage_again(run: pipeline.Run, marks: list[Any]) -> None:
    pipeline.execute(run)
    changed = {**run.stages, "ppo": replace(run.stages["ppo"], seed=5)}
    outcome = pipeline.execute(replace(run, stages=changed))
    assert outcome["sft"] == outcome["reward"] == "unchanged"
    assert outcome["ppo"] == "ran"


def test_a_changed_parent_does_its_children_again(run: pipeline.Run, marks: list[Any]) -> None:
    pipeline.execute(run)
    (run.folder / "sft" / "weights").write_text("other weights")
    outcome = pipeline.execute(run)
    assert outcome["sft"] == "unchanged"
    assert outcome["reward"] == outcome["ppo"] == outcome["eval"] == "ran"


def test_logging_and_saving_do_not_decide_what_comes_out(run: pipeline.Run) -> None:
    other = replace(run.stages["sft"], save_steps=7, logging_steps=1, report_to=["tensorboard"])
    changed = replace(run, stages={**run.stages, "sft": other})
    assert step_keys.step_key(run, "sft") == pipeline.step_key(changed, "sft")


def test_an_interrupted_step_is_continued(run: pipeline.Run, marks: list[Any]) -> None:
    pipeline.execute(run, last="sft")
    memory = run.folder / ".steps" / "sft.json"
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "state": "started"}))
    assert dict(pipeline.dry_run(run))["sft"] == "continue"
    assert pipeline.execute(run, last="sft") == {"sft": "continued"}
    assert marks == [("sft", False), ("sft", True)]


def test_a_dry_run_does_nothing(run: pipeline.Run, marks: list[Any]) -> None:
    assert [what for _, what in pipeline.dry_run(run)] == ["run"] * 6
    assert not marks
    assert not run.folder.exists()


def test_steps_are_chosen_with_from_and_to(run: pipeline.Run, marks: list[Any]) -> None:
    pipeline.execute(run, last="reward")
    assert [step for step, _ in marks] == ["sft", "reward"]
    with pytest.raises(ConfigError, match="swap them"):
        pipeline.execute(run, first="ppo", last="sft")


def test_two_runs_never_share_a_folder(run: pipeline.Run, marks: list[Any]) -> None:
    with (
        pipeline._locked(run.folder),
        pytest.raises(RunError, match="another `align run` is writing"),
    ):
        pipeline.execute(run)


def test_a_killed_process_is_named(run: pipeline.Run) -> None:
    with pytest.raises(RunError, match="ppo was ended by signal SIGKILL"):
        pipeline._process(["/bin/sh", "-c", "kill -9 $$"], "ppo")
    with pytest.raises(SystemExit, match="2"):
        pipeline._process(["/bin/sh", "-c", "exit 2"], "ppo")


def test_a_launcher_can_t_hide_the_exit_code(run: pipeline.Run, tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(
        "from align.errors import ConfigError, run_main\n"
        "def main():\n    raise ConfigError('no')\n"
        "run_main(main)\n"
    )
    launcher = f"{sys.executable} {script} || exit 1"
    with pytest.raises(SystemExit) as ended:
        pipeline._process(["/bin/sh", "-c", launcher], "sft", tmp_path / "sft.code")
    assert ended.value.code == 2


def test_every_card_of_a_stage_decides_what_comes_out(
    run: pipeline.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, str] = {}
    monkeypatch.setattr(step_keys, "_checkpoint_key", lambda name: name)
    monkeypatch.setattr(step_keys, "_card_key", lambda name: keys.get(name, name))
    before = step_keys.step_key(run, "ppo")
    keys["quickstart_capabilities"] = "other rows"  # what PPO-ptx learns from
    assert step_keys.step_key(run, "ppo") != before
