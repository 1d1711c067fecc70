"""What a step of the chain depends on, as one hash: a step is done again when it has changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import paths
from align.checkpoint.lineage import PARENTS
from align.checkpoint.save import CONTROL

if TYPE_CHECKING:
    from align.pipeline import Run

# Code that changes no weights and no scores.
NOT_COMPUTED = ("report", "card.py", "plan", "cli.py", "chat.py", "pipeline.py", "step_keys.py")


def step_key(run: Run, step: str) -> str:
    """Hash of everything that decides what a step produces.

    Raises:
        FileNotFoundError: a parent checkpoint does not exist yet.
    """
    return _sha256(json.dumps(_inputs(run, step), sort_keys=True, default=str))


def _cards(config: Any) -> list[str]:
    return [*config.datasets, *(getattr(config, "ptx_datasets", None) or ())]


def _inputs(run: Run, step: str) -> dict[str, Any]:
    if step in run.trained:
        config = run.stages[step]
        content = {k: v for k, v in asdict(config).items() if k not in CONTROL}
        fields = ("reward_functions", "gold_functions")
        functions = [name.split(":")[0] for field in fields for name in content.get(field) or ()]
        parents = [content.pop(field, None) for field in PARENTS]
        return {
            "config": content,
            "parents": [_checkpoint_key(p) for p in parents if p],
            "data": {card: _card_key(card) for card in _cards(config)},
            "functions": [_file_hash(Path(name)) for name in functions],
            "accelerate": run.accelerate_config and run.accelerate_config.read_text("utf-8"),
            "code": code_hash(),
        }
    checkpoints = {s: _checkpoint_key(run.checkpoint(s)) for s in run.evaluated}
    if step == "eval":
        config = asdict(run.stages["eval"])
        return {
            "config": config,
            "of": checkpoints,
            "evals": tree_hash(paths.EVALS),
            "code": code_hash(),
        }
    results = {s: _file_hash(run.folder / "eval" / s / "results.json") for s in run.evaluated}
    return {"of": checkpoints, "results": results, "code": tree_hash(paths.PACKAGE, (".py",))}


def _checkpoint_key(name: str) -> str:
    """Weights of a checkpoint on disk, or the Hub id as it is."""
    from align import checkpoint

    path = Path(checkpoint.resolve(name))
    return checkpoint.weights_sha256(path) if path.is_dir() else name


def _card_key(name: str) -> list[Any]:
    """A card's text and its files; what a generator makes is decided by the code."""
    from align import data
    from align.data import sources

    card = data.load_card(name)
    entries = card.align.files + card.align.local
    here = entries and not (card.align.hub and not sources.available(card))
    return [_file_hash(card.path), *map(_file_hash, data.data_files(card) if here else [])]


def code_hash() -> str:
    """Hash of the code that computes weights and scores."""
    files = [p for p in paths.PACKAGE.rglob("*.py") if not _is(p, NOT_COMPUTED)]
    return _files_hash([*files, *paths.RECIPES.glob("*.py")])


def _is(path: Path, names: tuple[str, ...]) -> bool:
    return path.relative_to(paths.PACKAGE).parts[0] in (*names, "_bundled")


def tree_hash(
    folder: Path, suffixes: tuple[str, ...] = (".yaml", ".jsonl", ".py", ".jinja")
) -> str:
    """Hash of the files of a folder by name and content."""
    return _files_hash([p for p in folder.rglob("*") if p.suffix in suffixes])


def _files_hash(files: list[Path]) -> str:
    return _sha256("\n".join(f"{p.name} {_file_hash(p)}" for p in sorted(files)))


def _file_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
