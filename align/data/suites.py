"""The item texts of evaluation tasks, for keeping them out of training data."""

from collections.abc import Iterator, Sequence
from typing import Any

from align.data.cards import Card, FileSource, card_names, load_card
from align.data.sources import data_files, rows_of
from align.errors import DataError


def card_of_task(task: str) -> Card:
    """The eval card that holds the items of a task.

    Raises:
        DataError: no card says that it does.
    """
    cards = [load_card(name) for name in card_names()]
    for card in cards:
        if task in card.tasks:
            return card
    known = sorted(task for card in cards for task in card.tasks)
    raise DataError(f"no data card holds the items of the task {task!r}; known: {', '.join(known)}")


def task_texts(task: str) -> list[str]:
    """The texts of a task's items which training data must not contain.

    Raises:
        DataError: unknown task, or its files are not here.
    """
    return [text for _, text in task_items(task)]


def task_items(task: str) -> list[tuple[str, str]]:
    """(id, text) of a task's items; where they have no id, the number of the row stands for it.

    Raises:
        DataError: unknown task, or its files are not here.
    """
    card = card_of_task(task)
    entries = [
        e for e in card.align.files + card.align.local if (e.task or card.name) == task and e.text
    ]
    if not entries:
        raise DataError(f"{card.path} names no `text` columns for {task}; overlap can't be checked")
    items: list[tuple[str, str]] = []
    for entry, path in zip(entries, _paths(card, entries, task), strict=True):
        items += [
            (str(row.get("id", number)), item_text(row, entry))
            for number, row in rows_of(entry, path)
        ]
    return items


def _paths(card: Card, entries: Sequence[FileSource], task: str) -> Iterator[Any]:
    """The paths of some of the files that a task reads."""
    every = [e for e in card.align.files + card.align.local if (e.task or card.name) == task]
    paths = dict(zip((e.path for e in every), data_files(card, task), strict=True))
    return (paths[entry.path] for entry in entries)


def item_text(row: dict[str, Any], entry: FileSource) -> str:
    """The text of one item: its columns, one below the other; absent ones are left out."""
    parts = (_reach(row, column) for column in entry.text)
    return "\n".join(part for part in parts if part)


def _reach(row: Any, column: str) -> str:
    """The text under ``a.b``, the joined texts of a list."""
    for name in column.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    if isinstance(row, list):
        return "\n".join(str(part) for part in row)
    return "" if row is None else str(row)
