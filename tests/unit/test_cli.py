"""The command line: help at once, one line for mistakes, the right default model."""

import subprocess
import sys
from pathlib import Path

import pytest

from align import cli
from align.evaluation.command import newest_checkpoint


def align(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "align.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_help_fits_one_screen_and_loads_no_torch() -> None:
    code = "import sys; from align import cli; cli.main(['--help']); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"
    assert len(shown.stdout.splitlines()) < 35
    for command in cli.COMMANDS:
        assert f"align {command}" in shown.stdout


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["evel"], "error: align has no command 'evel'; did you mean eval?\n"),
        (["run", "quikstart"], "did you mean quickstart?"),
        (["run", "--outptu", "x"], "did you mean --output?"),
        (["run", "--set", "ppo"], "write --set stage.field=value"),
        (["run", "--set", "ppo.kl_coeff=1"], "did you mean kl_coef?"),
        (["run", "--from", "eval", "--to", "sft", "--output", "x"], "swap them"),
        (["run", "--from", "nothing", "--output", "x"], "this recipe has the steps sft, reward"),
        (["eval", "--suite", "bias", "--limit", "0"], "give 1 or more"),
        (["eval", "--suite", "bias", "--limit", "bbq=many"], "give 1 or more"),
        (["eval", "--suite", "bias", "--limit", "bqb=9", "--model", "quickstart-base"], "bqb"),
        (["report", "nowhere"], "nowhere is not the folder of a run"),
        (["card", "nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(args: list[str], line: str, tmp_path: Path) -> None:
    ended = align(*args, cwd=tmp_path)
    assert ended.returncode == 2
    assert line in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help_with_an_example(command: str) -> None:
    ended = align(command, "--help")
    assert ended.returncode == 0
    assert "example" in ended.stdout.lower()


def test_the_default_model_is_the_newest_aligned_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert newest_checkpoint() == "quickstart-base"
    for stage in ("ppo", "sft"):  # SFT is newer, PPO is more aligned
        (tmp_path / "runs" / "a" / stage).mkdir(parents=True)
        (tmp_path / "runs" / "a" / stage / "lineage.json").write_text("{}")
    assert newest_checkpoint() == "runs/a/ppo"
    assert "model: runs/a/ppo" in capsys.readouterr().err
