"""What can be said of an evaluation before torch is imported: the checkpoint, the tasks' names."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from align import checkpoint
from align.evaluation import suites
from align.evaluation.ancestry import Ancestry, ancestry


class Looked(NamedTuple):
    """What will be evaluated."""

    info: checkpoint.CheckpointInfo
    known: Ancestry
    files: list[suites.TaskFile]


def look(model: str, suites_or_tasks: Sequence[str], include: Path | None) -> Looked:
    """The checkpoint's header, its ancestry, and the files of the tasks.

    Raises:
        CheckpointError: no such checkpoint, or one that can't be used.
        EvalError: unknown suite, task or file.
    """
    path = checkpoint.resolve(model)
    if checkpoint.is_masked(path):
        info = checkpoint.inspect_checkpoint(path, expect="masked")
    else:
        info = checkpoint.inspect_checkpoint(path)
    known = ancestry(model)
    return Looked(info, known, suites.resolve(suites_or_tasks, known.world, include))
