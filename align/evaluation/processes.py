"""Several processes that evaluate one model together, each on its share of the requests.

Started by ``align eval --processes N``, `accelerate launch` or `torchrun`: whoever sets WORLD_SIZE.
A process answers its share, everybody learns all answers, the first one scores and writes.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from align.errors import EvalError, RunError

PATIENCE = timedelta(days=2)  # the others wait while the first one scores
POLL = 0.2  # seconds


class Team(NamedTuple):
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True for the process that scores, writes and prints."""
        return self.rank == 0

    def share(self, groups: Sequence[str]) -> list[int]:
        """Indices of this process's part; what belongs to one group stays together.

        Groups (contexts) are dealt out in sorted order and equal numbers of requests, so that
        neighbours with a common prefix tend to meet in one process.
        """
        if self.size == 1:
            return list(range(len(groups)))
        first: dict[str, int] = {}
        for place, group in enumerate(sorted(groups)):
            first.setdefault(group, place)
        owners = [first[group] * self.size // len(groups) for group in groups]
        return [i for i, owner in enumerate(owners) if owner == self.rank]

    def gather(self, mine: list[Any]) -> list[Any]:
        """Everybody's objects, in the order of the processes."""
        if self.size == 1:
            return mine
        from accelerate.utils import gather_object

        return list(gather_object(mine))

    def from_first(self, value: Any) -> Any:
        """The first process's object."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


def started_by_a_launcher() -> bool:
    """True in one of several processes that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> Team:
    """This process's place among those that were started together.

    Raises:
        EvalError: the launcher's variables are set, but the processes don't find each other.
    """
    if not started_by_a_launcher():
        return Team()
    import torch
    from accelerate import PartialState

    size = int(os.environ["WORLD_SIZE"])
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    if state.num_processes != size:
        raise EvalError(
            f"WORLD_SIZE is {size}, but accelerate sees {state.num_processes} process(es), each of "
            "which would do everything; start with `align eval --processes N`, or torchrun"
        )
    return Team(state.process_index, state.num_processes)


def leave() -> None:
    """Part in peace: a process that ends while another still listens makes that one crash."""
    if started_by_a_launcher():
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()


def launch(count: int, args: Sequence[str]) -> int:
    """Run ``align eval`` in several processes of this machine; the first failing exit code.

    What the first process says is seen; what another says, only if it alone fails.

    Raises:
        RunError: another than the first process failed.
    """
    env = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-m", "align.cli", "eval", *args]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        started = [
            subprocess.Popen(
                command,
                env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else said,
            )
            for rank in range(count)
        ]
        try:
            code, rank = _wait(started)
        except KeyboardInterrupt:  # which all of them got too
            return started[0].wait()  # it says what was kept
        finally:
            for process in started:
                process.kill()
                process.wait()
        if code and rank:
            said.seek(0)
            last = said.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise RunError(f"process {rank} of {count} ended with exit code {code}: {last[0]}")
    return code


def _wait(started: Sequence["subprocess.Popen[bytes]"]) -> tuple[int, int]:
    """(exit code, process) of the first that fails, else (0, 0) once all have ended."""
    while True:
        codes = [process.poll() for process in started]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            time.sleep(POLL)  # the first process says best what is wrong with all
            rank = 0 if started[0].poll() else failed[0]
            return started[rank].returncode, rank
        if all(code == 0 for code in codes):
            return 0, 0
        time.sleep(POLL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
