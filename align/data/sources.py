"""From a card to its rows: ALIGN_DATA, then the Hugging Face cache, then the Hub."""

import hashlib
import importlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from align.data.cards import Card, FileSource, align_data
from align.data.readers import Numbered, format_of, read_rows
from align.errors import DataError


def data_files(card: str | Card, task: str | None = None) -> list[Path]:
    """The files of a card (or those that one evaluation task reads), found and checked.

    Raises:
        DataError: a file is missing (names it, its source and what to do) or was changed.
    """
    from align.data.cards import load_card

    card = load_card(card) if isinstance(card, str) else card
    entries = card.align.files + card.align.local
    if not entries:
        raise DataError(f"{card.name} has no files: its records come from {source_name(card)}")
    wanted = [e for e in entries if task is None or (e.task or card.name) == task]
    if not wanted:
        raise DataError(f"{card.name} has no file of the task {task}; its tasks: {card.tasks}")
    missing = [e for e in wanted if not _locate(card, e)]
    if missing:
        raise DataError(_missing(card, missing))
    return [_checked(card, e) for e in wanted]


def source_name(card: Card) -> str:
    """Where the rows of a card come from on this machine, in words."""
    block = card.align
    if block.quickstart:
        made = block.quickstart
        return f"the embedded world ({made.generator}, {made.rows} rows, seed {made.seed})"
    if block.local or files_there(card):
        return ", ".join(entry.path for entry in block.local or block.files)
    if block.hub:
        from align.data import hub

        return hub.describe(block.hub)
    return ", ".join(entry.path for entry in block.files)


def available(card: Card) -> bool:
    """Whether the rows can be read without a download."""
    block = card.align
    if block.quickstart:
        return True
    if files_there(card):
        return True
    if block.hub:
        from align.data import hub

        return hub.cached(block.hub) is not None
    return False


def numbered_rows(card: Card) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Yield (row number, row) of a card; ``file:row`` where it has several files.

    Raises:
        DataError: the data are not here and may not, or can't, be fetched; a broken file.
    """
    block = card.align
    if block.quickstart:
        yield from enumerate(_generated(card), 1)
    elif block.local or files_there(card):
        entries = block.local or block.files
        for entry in entries:
            path = _checked(card, entry)
            for number, row in rows_of(entry, path):
                yield (number if len(entries) == 1 else f"{path.name}:{number}"), row
    elif block.hub:
        from align.data import hub

        yield from enumerate(hub.load(card), 1)
    else:
        raise DataError(_missing(card, [e for e in block.files if not _locate(card, e)]))


def rows_of(entry: FileSource, path: Path) -> Iterator[Numbered]:
    """Rows of one file of a card."""
    form = entry.format or format_of(entry.path)
    assert form is not None  # the card was checked when it was read
    return read_rows(path, form, entry.header or None)


# ---------------------------------------------------------------- files


def _locate(card: Card, entry: FileSource) -> Path | None:
    """The path of a file that exists."""
    if entry in card.align.local:
        base: Path | None = card.path.parent
    else:
        base = align_data()
    path = base / Path(entry.path).expanduser() if base else None
    return path if path and path.is_file() else None


def files_there(card: Card) -> bool:
    """Whether the card names files and all of them exist."""
    entries = card.align.files + card.align.local
    return bool(entries) and all(_locate(card, entry) for entry in entries)


def _missing(card: Card, entries: list[FileSource]) -> str:
    names = ", ".join(entry.path for entry in entries)
    if card.align.local:
        return f"{card.name}: no file {names} beside {card.path}; correct `path` in the card"
    folder = align_data()
    where = f"ALIGN_DATA ({folder})" if folder else "ALIGN_DATA (which is not set)"
    origin = card.align.upstream or (card.align.hub.id if card.align.hub else "its publisher")
    return (
        f"{card.name}: {names} is not under {where}; get it from {origin} "
        f"and set ALIGN_DATA to the folder that holds it (sha256 in {card.path.name})"
    )


def _checked(card: Card, entry: FileSource) -> Path:
    path = _locate(card, entry)
    if path is None:
        raise DataError(_missing(card, [entry]))
    if entry.sha256:
        stat = path.stat()
        found = file_sha256(path, stat.st_size, stat.st_mtime_ns)
        if found != entry.sha256.lower():
            raise DataError(
                f"{card.name}: {path} has sha256 {found[:16]}…, the card says "
                f"{entry.sha256[:16]}…; the file was changed or damaged: fetch it again, "
                "or correct the card if the change is meant"
            )
    return path


@lru_cache(maxsize=256)
def file_sha256(path: Path, size: int, modified: int) -> str:
    """SHA-256 of a file; size and time are part of the key under which it is remembered."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------- the embedded world


def _generated(card: Card) -> Iterator[dict[str, Any]]:
    made = card.align.quickstart
    assert made is not None
    world = importlib.import_module("align.quickstart.world")
    generator = getattr(world, made.generator, None)
    if generator is None:
        raise DataError(f"{card.path}: align.quickstart.world has no function {made.generator}")
    rows = generator(world.World(), made.rows, made.seed)
    return ({"text": row} if isinstance(row, str) else row for row in rows)
