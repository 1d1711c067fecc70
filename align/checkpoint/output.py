"""The folder of a run: new, to be resumed, finished, or not ours.

While a run goes on ``run.json`` says which; it is finished when its folder holds ``lineage.json``,
which is moved there last.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.checkpoint.save import (
    CONTROL,
    LINEAGE,
    MANIFEST,
    OLD,
    TMP,
    is_complete,
    newest_complete,
    numbered,
    portable,
    sync,
    write_json,
)
from align.errors import CheckpointError, ConfigError

MARKER = "run.json"
STAGING = "final.tmp"


class OutputState(NamedTuple):
    """What an output directory holds."""

    state: Literal["empty", "finished", "interrupted", "foreign"]
    stage: str | None = None
    step: int | None = None
    """Of the newest complete checkpoint of an interrupted run."""
    differs: tuple[str, ...] = ()
    """Fields that had another value when the run was started, as ``name: then -> now``."""


def output_state(folder: Path, config: Any = None) -> OutputState:
    """What is in an output directory: nothing, a run of align, or something else."""
    begun = MARKER + TMP  # all that a kill at the very start leaves
    if not folder.is_dir() or all(path.name == begun for path in folder.iterdir()):
        return OutputState("empty")
    for name, state in ((LINEAGE, "finished"), (MARKER, "interrupted")):
        values = _read(folder / name)
        if values is None:
            continue
        newest = newest_complete(folder)
        return OutputState(
            state,  # type: ignore[arg-type]
            values.get("stage"),
            int(newest.name.rpartition("-")[2].removesuffix(OLD)) if newest else None,
            _differences(values.get("config") or {}, config),
        )
    return OutputState("foreign")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _differences(then: dict[str, Any], config: Any) -> tuple[str, ...]:
    now = {} if config is None else portable(asdict(config), Path(config.output_dir))
    return tuple(
        f"{name}: {then[name]!r} -> {value!r}"
        for name, value in now.items()
        if name not in CONTROL and name in then and then[name] != value
    )


def begin_run(config: Any, inputs: Mapping[str, str] | None = None) -> Path | None:
    """Make the output directory ready; return the checkpoint to resume from, if there is one.

    Checkpoints that were not written to their end are removed, so that nothing can mix with them.
    Only rank 0 calls this, the others wait.

    Args:
        config: of the stage
        inputs: what the run starts from and its hash (`align.checkpoint.inputs`)

    Raises:
        ConfigError: the directory holds something else than a run, or the run that it holds
            started from something else than this one.
        CheckpointError: its only checkpoint was damaged after it had been written.
    """
    folder = Path(config.output_dir)
    found = output_state(folder, config)
    if found.state == "foreign":
        raise ConfigError(
            f"{folder} holds files that are no run of align; give another --output_dir"
        )
    if found.state != "empty" and not config.resume:
        if not config.overwrite:
            raise ConfigError(in_use(folder, found))
        _empty(folder)
    newest = resumable(folder).newest if config.resume else None
    started_from = (_read(folder / MARKER) or {}).get("inputs") or {}
    if newest:
        _check_inputs(config, started_from, inputs or {})
    folder.mkdir(parents=True, exist_ok=True)
    values = portable(asdict(config), folder)
    marker = {"stage": config.stage, "config": values, "inputs": dict(inputs or started_from)}
    write_json(folder / MARKER, marker)
    for path in folder.glob("checkpoint-*"):
        if newest is None or (path != newest and not is_complete(path)):
            shutil.rmtree(path)
    return newest


def _check_inputs(config: Any, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """A continuation starts from what its run started from."""
    name = next((n for n, sha256 in then.items() if now.get(n, sha256) != sha256), None)
    if name is not None:
        what = f"{name} {getattr(config, name, None) or ''}".strip()
        raise ConfigError(
            f"{config.output_dir} can't be resumed: {what} "
            f"changed since it was started (sha256 {then[name][:12]} then, {now[name][:12]} now); "
            "bring it back, or start again with --overwrite or another --output_dir"
        )


class Resumable(NamedTuple):
    """What a run can go on from."""

    newest: Path | None
    """None: nothing was saved yet."""
    damaged: Path | None
    """A newer one that was written to its end and changed since."""


def resumable(folder: Path) -> Resumable:
    """The checkpoint to go on from.

    Raises:
        CheckpointError: there is but one, and it is damaged.
    """
    broken = None
    for path in numbered(folder, "checkpoint-"):
        if is_complete(path):
            return Resumable(path, broken)
        broken = broken or (path if (path / MANIFEST).is_file() else None)
    if broken:
        raise CheckpointError(
            f"{broken} is damaged: a file is missing or not the one that its {MANIFEST} names; "
            "bring it back from a copy, or start again with --overwrite"
        )
    return Resumable(None, None)


def _empty(folder: Path) -> None:
    """Delete a run; a kill on the way leaves a folder that still is one."""
    write_json(folder / MARKER, {"stage": "(half deleted)"})
    for path in sorted(folder.iterdir(), key=lambda p: p.name != LINEAGE):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()


def in_use(folder: Path, found: OutputState) -> str:
    """One line: what an output directory holds and what to do."""
    where = f" (saved at step {found.step})" if found.state == "interrupted" and found.step else ""
    article = "an" if found.state == "interrupted" else "a"
    return (
        f"{folder} holds {article} {found.state} run of {found.stage}{where}; "
        "give --resume, --overwrite, or another --output_dir"
    )


@contextlib.contextmanager
def finish_run(folder: Path) -> Iterator[Path]:
    """A folder to write the final files into; at the end they move up, lineage.json last.

    Then the intermediate checkpoints go.
    """
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    files = sorted(staging.iterdir(), key=lambda p: p.name == LINEAGE)
    for file in files:
        if file.is_file():
            sync(file)
    for file in files:
        if (folder / file.name).is_dir():
            shutil.rmtree(folder / file.name)
        os.replace(file, folder / file.name)
    sync(folder)
    tidy(folder)


def tidy(folder: Path) -> None:
    """Remove what a finished run needs no more; again, where a kill came before the end of it."""
    for path in (folder / STAGING, *folder.glob("checkpoint-*")):
        shutil.rmtree(path, ignore_errors=True)
    (folder / MARKER).unlink(missing_ok=True)
