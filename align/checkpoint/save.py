"""Write so that a kill at any moment leaves a complete folder or none.

A folder is complete when it holds ``manifest.json`` and every file that it names has its size and
hash.
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
from pathlib import Path
from typing import Any

from align.errors import FULL, CheckpointError, RunError
from align.guards import resume_command

MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
TORCH = {".pt", ".pth", ".bin"}  # what torch.save writes
OLD, TMP = ".old", ".tmp"
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
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """Sizes and hashes of all files, flushed to the disk, manifest last.

    Raises:
        OSError: the disk was full and torch.save, given a path, has not said it: the end of its
            file, by which a zip archive is found, is missing.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    for file in files:
        sync(file)
        if file.suffix in TORCH and not zipfile.is_zipfile(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    entries = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
        for p in files
    }
    write_json(folder / MANIFEST, {"files": entries})
    sync(folder)


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
    return next((path for path in numbered(folder, prefix) if is_complete(path)), None)


def numbered(folder: str | Path, prefix: str) -> list[Path]:
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


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- paths


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


# ---------------------------------------------------------------- a model


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
