"""What can go wrong, and how it ends.

AlignError               base of everything raised on purpose; the message says
                         what was got, why it is wrong, what to do
├── ConfigError          a recipe, a flag or a value                     exit 2
├── DataError            a card, a file, a record                        exit 2
├── CheckpointError      weights, tokenizer, adapter, lineage            exit 2
├── EvalError            a suite, a task, a scorer, a results file       exit 2
└── RunError             the run itself failed: NaN, full disk, hang     exit 1
    └── GateError        a measured number missed the stated gate        exit 1
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, none left to this user, a limit
CODE_FILE = "ALIGN_CODE_FILE"  # environment variable: where a launched program leaves its exit code


class AlignError(Exception):
    """Base of all errors that align raises on purpose."""

    exit_code = 2


class ConfigError(AlignError):
    """A recipe, a command-line flag or a value is wrong."""


class DataError(AlignError):
    """A data card, a data file or a record is wrong."""


class CheckpointError(AlignError):
    """A checkpoint, tokenizer or adapter can't be used."""


class EvalError(AlignError):
    """A suite, task, scorer or results file can't be used."""


class RunError(AlignError):
    """The run failed although its input was right."""

    exit_code = 1


class GateError(RunError):
    """A measured number missed a gate that the user stated."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which reaches this process alone, where Ctrl-C reaches its children too."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM after a clean save; the message says how to resume."""


def is_main_process() -> bool:
    """True on the one process that speaks (global rank 0, or no launcher at all)."""
    return int(os.environ.get("RANK", "0")) == 0


def one_line(error: BaseException) -> str:
    """The message of an error on a single line."""
    return " ".join(str(error).split())


def verdict(error: BaseException) -> tuple[str, int] | None:
    """(line for stderr, exit code) of an error that a user should read, None for a bug."""
    if isinstance(error, AlignError):
        return f"error: {one_line(error)}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted: {one_line(error) or 'nothing was saved; run it again'}", 130
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"error: the disk is full{where}; free some space and run the same command again", 1
    if isinstance(error, BrokenPipeError):
        return "", 0
    return None


def run_main(main: Callable[[], int | None]) -> None:
    """Run a program: one line and an exit code for users' mistakes, a traceback for our bugs.

    ``ALIGN_VERBOSE=1`` (``--verbose`` on the command line) adds the traceback to the line.
    SIGTERM, which schedulers send before they take a machine back, is treated like Ctrl-C.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = main() or 0
    except Exception as error:
        code = _tell(error)
    except KeyboardInterrupt as error:
        for number in (signal.SIGINT, signal.SIGTERM):  # it is ending already
            signal.signal(number, signal.SIG_IGN)
        code = _tell(error)
    _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """Write the exit code where ``align run`` reads it: launchers end with 1 whatever happened."""
    if is_main_process() and CODE_FILE in os.environ:
        Path(os.environ[CODE_FILE]).write_text(str(code), encoding="ascii")


def _tell(error: BaseException) -> int:
    """Print what a user should read about an error and return the exit code."""
    known = verdict(error)
    if known is None or os.environ.get("ALIGN_VERBOSE"):
        traceback.print_exception(error)
    line, code = known or ("", 1)
    if line and is_main_process():
        print(line, file=sys.stderr, flush=True)
    return code


def _interrupt(signum: int, frame: object) -> None:
    raise Terminated
