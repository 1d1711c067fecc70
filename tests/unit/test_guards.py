"""What ends a run early: numbers that are none, losses that jump, signals."""

import os
import signal

import pytest

from align.errors import RunError
from align.guards import Interrupts, LossGuard, resume_command


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops(loss):
    with pytest.raises(RunError, match=rf"the loss is {loss} at step 3.*lower learning_rate"):
        LossGuard(0).check(loss, 3)


def test_a_jump_stops():
    guard = LossGuard(3.0)
    for step in range(5):
        guard.check(1.0 + step / 10, step)
    guard.check(3.5, 5)
    with pytest.raises(
        RunError, match=r"jumped to 5 at step 6, more than 3 times its running median"
    ):
        guard.check(5.0, 6)


def test_no_jump_before_there_is_a_median_nor_close_to_zero_nor_when_off():
    guard = LossGuard(3.0)
    guard.check(1.0, 0)
    guard.check(100.0, 1)
    guard = LossGuard(10.0)
    for step in range(20):
        guard.check(1e-5, step)
    guard.check(0.5, 21)
    with pytest.raises(RunError, match="jumped"):
        guard.check(1.5, 22)
    guard = LossGuard(0)
    for loss in (1e-5,) * 20 + (1e5,):
        guard.check(loss, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_flag(number):
    interrupts, before = Interrupts(), signal.getsignal(number)
    interrupts.install()
    try:
        assert not interrupts.asked
        os.kill(os.getpid(), number)
        assert interrupts.asked
    finally:
        interrupts.restore()
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_ends_at_once_but_not_the_launchers_sigterm():
    interrupts = Interrupts()
    interrupts.install()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        interrupts.restore()


def test_the_command_that_resumes(monkeypatch):
    for name in [n for n in os.environ if n.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    argv = ["recipes/sft.py", "--config", "my file.yaml", "--overwrite"]
    assert resume_command(argv) == "python recipes/sft.py --config 'my file.yaml' --resume"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert resume_command(argv).startswith("accelerate launch recipes/sft.py")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resume_command(argv).startswith("accelerate launch (your launch options) recipes/sft.py")
