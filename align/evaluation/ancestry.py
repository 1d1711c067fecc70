"""Where a checkpoint comes from, as far as lineage.json files can be followed."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from align import checkpoint, paths
from align.errors import DataError
from align.evaluation.suites import World

GENERATIONS = 100  # more would be a circle


class Ancestry(NamedTuple):
    """The lineages of a checkpoint and its parents, youngest first."""

    lineages: list[dict[str, Any]]
    world: World
    whole: bool
    """True if the last of them has no parent: everything that it was trained on is known."""


def ancestry(name: str) -> Ancestry:
    """Follow the parents of a checkpoint.

    A model that descends from quickstart-base belongs to the embedded world.
    """
    base = paths.QUICKSTART_BASE
    there = (base / "config.json").is_file()
    base_sha = checkpoint.weights_sha256(base) if there else None
    folder = Path(checkpoint.resolve(name))
    found: list[dict[str, Any]] = []
    for _ in range(GENERATIONS):
        if there and folder.is_dir() and folder.samefile(base):
            return Ancestry([*found, checkpoint.read_lineage(base)], "quickstart", True)
        lineage = checkpoint.read_lineage(folder) if folder.is_dir() else {}
        if not lineage:
            break
        found.append(lineage)
        parent = lineage.get("parent")
        if not parent:
            return Ancestry(found, "published", True)
        if parent["path"] == "quickstart-base" or parent.get("weights_sha256", "") == base_sha:
            root = checkpoint.read_lineage(base) if there else {}
            return Ancestry([*found, root], "quickstart", bool(root))
        before, folder = folder, folder / parent["path"]
        if not folder.is_dir():  # the run was moved
            folder = before.parent / folder.name
    return Ancestry(found, "published", False)


def contaminated(task: str, known: Ancestry, asked: Collection[str] | None = None) -> int | None:
    """Items of a task (of those that were asked) whose text a model was trained on.

    None where nobody can know. Each card back to the root must say which items its data share
    text with: training drops the records that overlap with a task in `must_not_overlap`, so none
    is left, and `overlap_with` is counted into the card's computed facts.
    """
    if not known.whole or not known.lineages:
        return None
    data = [entry for lineage in known.lineages for entry in lineage.get("data") or ()]
    found = [_overlapping(entry, task) for entry in data]
    items: set[str] = set()
    for names in found:
        if names is None:
            return None
        items |= set(names)
    if not data:
        return None
    return len(items if asked is None else items & set(asked))


def _overlapping(entry: dict[str, Any], task: str) -> list[str] | None:
    """Items of a task that share text with the data of one entry of a lineage; None: not known."""
    from align.data.cards import load_card
    from align.data.check import told_overlap

    name = str(entry["card"])
    for spelled in (name, name.replace("-", "_")):
        try:
            card = load_card(spelled)
        except DataError:
            continue
        made = card.align.quickstart
        if card.kind == "eval" and made and entry.get("rows") != made.rows:
            return None  # another corpus than the one that was counted
        return told_overlap(card, task)
    return None
