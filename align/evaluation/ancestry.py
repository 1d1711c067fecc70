"""Where a checkpoint comes from, as far as lineage.json files can be followed."""

from collections.abc import Sequence
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


def contaminated(task: str, known: Ancestry) -> int | None:
    """Items of a task that a model was trained on; None where nobody can know.

    Training drops every record that overlaps with a task which its card says it must not overlap
    with, so 0 follows where all cards back to the root say so.
    """
    if not known.whole or not known.lineages:
        return None
    cards = [str(row["card"]) for lineage in known.lineages for row in lineage.get("data") or ()]
    return 0 if cards and all(_keeps_out(card, task) for card in cards) else None


def _keeps_out(card: str, task: str) -> bool:
    """True if a card says that its training records don't overlap with a task."""
    from align.data.cards import load_card

    for name in (card, card.replace("-", "_")):
        try:
            overlap: Sequence[str] = load_card(name).align.must_not_overlap
        except DataError:
            continue
        return task in overlap
    return False
