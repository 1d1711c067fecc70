"""Write so that a kill at any moment leaves a complete folder or none.

A folder is complete when it holds ``manifest.json`` and every file that it names has its size and
hash. A run is finished when its output directory holds ``lineage.json``, which is moved there last.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.errors import FULL, CheckpointError, ConfigError, RunError
from align.guards import resume_command

MANIFEST = "manifest.json"
MARKER = "run.json"
LINEAGE = "lineage.json"
TORCH = {".pt", ".pth", ".bin"}  # what torch.save writes
OLD, TMP = ".old", ".tmp"
STAGING = "final.tmp"
CONTROL = {"resume", "overwrite", "output_dir", "logging_steps", "save_steps", "report_to"}
CONTROL |= {"reward_timeout", "reward_retries", "vllm_url", "vllm_timeout"}
"""Fields that change nothing of what is learnt."""


# ---------------------------------------------------------------- atomic folders


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """A folder ``x.tmp`` to write into, which becomes ``x`` with a manifest when the block ends.

    When the block raises, ``x`` is as it was before.
    """
    tmp, old = (target.with_name(target.name + end) for end in (TMP, OLD))
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        yield tmp
        write_manifest(tmp)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(tmp, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """Sizes and hashes of all files, flushed to the disk, manifest last.

    Raises:
        OSError: the disk was full and torch.save, given a path, has not said it: the end of its
            file, by which a zip archive is found, is missing.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    for file in files:
        _sync(file)
        if file.suffix in TORCH and not zipfile.is_zipfile(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    entries = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
        for p in files
    }
    write_json(folder / MANIFEST, {"files": entries})
    _sync(folder)


def is_complete(folder: Path) -> bool:
    """Whether a folder has a manifest and every file that it names, unchanged."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(
            (folder / name).stat().st_size == entry["bytes"]
            and file_sha256(folder / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def newest_complete(folder: str | Path, prefix: str = "checkpoint-") -> Path | None:
    """The newest complete folder ``<prefix><number>``, or None.

    A kill while `atomic_dir` replaced a folder leaves the former one as ``<prefix><number>.old``.
    """
    return next((path for path in _numbered(folder, prefix) if is_complete(path)), None)


def _numbered(folder: str | Path, prefix: str) -> list[Path]:
    """Folders ``<prefix><number>`` and ``<prefix><number>.old``, the newest first."""
    names = {p: p.name.removeprefix(prefix) for p in Path(folder).glob(f"{prefix}*")}
    steps = {p: int(n.removesuffix(OLD)) for p, n in names.items() if n.removesuffix(OLD).isdigit()}
    return sorted(steps, key=lambda p: (-steps[p], p.name))


@contextlib.contextmanager
def disk_errors(folder: str | Path) -> Iterator[None]:
    """A full disk, which torch and safetensors tell in their own words, in ours.

    Raises:
        RunError: what of the run stands, and how to go on.
    """
    try:
        yield
    except Exception as error:
        why = _why_full(error)
        if isinstance(error, RunError) or why is None:
            raise
        newest = newest_complete(folder)
        kept = f"{newest.name} is intact" if newest else "nothing was saved yet"
        raise RunError(
            f"the disk is full while writing in {folder} ({why}); {kept}; "
            f"free some space, then: {resume_command()}"
        ) from error


def _why_full(error: Exception) -> str | None:
    """The system's words for a disk that takes no more, None for another error.

    safetensors tells the number in a text, torch tells that a write failed.
    """
    for number in FULL:
        if getattr(error, "errno", 0) == number or f"os error {number})" in str(error):
            return os.strerror(number)
    words = (
        "file write failed",
        "PytorchStreamWriter failed",
        "] . unexpected pos ",
        "iostream er",
    )
    return os.strerror(FULL[0]) if any(word in str(error) for word in words) else None


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (no NaN), written beside and moved into place."""
    tmp = path.with_name(path.name + TMP)
    with tmp.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(tmp, path)


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- an output directory


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


def portable(value: Any, home: Path) -> Any:
    """Paths in a config or a lineage as seen from a checkpoint's folder: ``../sft``.

    So a run can be moved, and its files tell nothing of the machine that it ran on.
    """
    if isinstance(value, dict):
        return {portable(k, home): portable(v, home) for k, v in value.items()}
    if isinstance(value, list):
        return [portable(v, home) for v in value]
    if isinstance(value, str) and os.sep in value and Path(value).exists():
        return os.path.relpath(value, home)
    return value


def located(value: Any, home: Path) -> Any:
    """The other way round: what `portable` wrote, as paths that can be opened from anywhere."""
    if isinstance(value, dict):
        return {located(k, home): located(v, home) for k, v in value.items()}
    if isinstance(value, list):
        return [located(v, home) for v in value]
    if isinstance(value, str) and value.startswith(".") and (home / value).exists():
        return os.path.normpath(home.absolute() / value)
    return value


def begin_run(config: Any) -> Path | None:
    """Make the output directory ready; return the checkpoint to resume from, if there is one.

    Checkpoints that were not written to their end are removed, so that nothing can mix with them.
    Only rank 0 calls this, the others wait.

    Raises:
        ConfigError: the directory holds something else than a run.
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
    folder.mkdir(parents=True, exist_ok=True)
    values = portable(asdict(config), folder)
    write_json(folder / MARKER, {"stage": config.stage, "config": values})
    for path in folder.glob("checkpoint-*"):
        if newest is None or (path != newest and not is_complete(path)):
            shutil.rmtree(path)
    return newest


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
    for path in _numbered(folder, "checkpoint-"):
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
            _sync(file)
    for file in files:
        if (folder / file.name).is_dir():
            shutil.rmtree(folder / file.name)
        os.replace(file, folder / file.name)
    _sync(folder)
    tidy(folder)


def tidy(folder: Path) -> None:
    """Remove what a finished run needs no more; again, where a kill came before the end of it."""
    for path in (folder / STAGING, *folder.glob("checkpoint-*")):
        shutil.rmtree(path, ignore_errors=True)
    (folder / MARKER).unlink(missing_ok=True)


def write_model(folder: Path, model: Any, tokenizer: Any, state: Any = None) -> None:
    """Model (or adapter, with the configs of its model beside it) and tokenizer as safetensors.

    An adapter is saved without the embedding even where PAD was added to it: the row of PAD is
    computed from the others, by `load`.
    """
    adapter = hasattr(model, "peft_config")
    options = {"save_embedding_layers": False} if adapter else {}
    model.save_pretrained(folder, state_dict=state, **options)
    if adapter:
        inner = model.get_base_model()
        inner.config.architectures = [type(inner).__name__]
        inner.config.save_pretrained(folder)
        if getattr(inner, "generation_config", None) is not None:
            inner.generation_config.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty card
    tokenizer.save_pretrained(folder)


def try_saving(model: Any, tokenizer: Any) -> None:
    """Everything of a checkpoint but the weights, saved and loaded again, before training starts.

    Raises:
        CheckpointError: a config that can't be saved, or a tokenizer that comes back different.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    with tempfile.TemporaryDirectory() as trial:
        try:
            inner.config.save_pretrained(trial)
            if getattr(inner, "generation_config", None) is not None:
                inner.generation_config.save_pretrained(trial)
            tokenizer.save_pretrained(trial)
            type(inner.config).from_pretrained(trial)
            again = type(tokenizer).from_pretrained(trial)
        except ValueError as error:
            raise CheckpointError(
                f"this checkpoint could not be saved after training ({error}); correct the "
                "parent's config.json or generation_config.json"
            ) from error
    if again.get_vocab() != tokenizer.get_vocab() or again.chat_template != tokenizer.chat_template:
        raise CheckpointError(
            "the tokenizer comes back different after saving and loading; copy the parent's "
            "tokenizer files again"
        )
