"""Buying tax back: weights between two checkpoints, θ = (1 − α)·θ_a + α·θ_b (2309.06256).

α = 0 is the first checkpoint (SFT), α = 1 the second (PPO). The averages are checkpoints like any
other, to be evaluated and put beside each other (`align.evaluation.sweep`).
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align import checkpoint
from align.checkpoint.inspect import weight_files
from align.errors import CheckpointError, EvalError

KEPT_BACK = (".safetensors", ".jsonl", ".md")  # of the second checkpoint: weights, logs, cards
ADAPTER = "adapter_config.json"


def average(first: Path, second: Path, alpha: float, output: Path) -> Path:
    """Write the average of two checkpoints of the same shape; adapters are merged first.

    The tokenizer and every other small file are the second checkpoint's. Sums are taken in
    float32 and stored in the second's dtype.

    Raises:
        CheckpointError: other parameter names or shapes, or an output folder that exists.
    """
    if not 0 <= alpha <= 1:
        raise EvalError(f"alpha is {alpha}; it must be between 0 (first) and 1 (second)")
    if output.exists():
        raise CheckpointError(f"{output} exists already; give a folder that doesn't")
    merge = (first / ADAPTER).is_file() or (second / ADAPTER).is_file()
    with checkpoint.atomic_dir(output) as folder:
        for path in second.iterdir():
            if path.is_file() and path.suffix not in KEPT_BACK and path.name != ADAPTER:
                shutil.copy2(path, folder / path.name)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        _note(folder, first, second, alpha)
        (_write_merged if merge else _write)(folder, first, second, alpha)
    return output


def _write(folder: Path, first: Path, second: Path, alpha: float) -> None:
    """Average two full checkpoints file by file; no model is built."""
    from safetensors.torch import save_file

    ours, theirs = _weights(first), _weights(second)
    _same_shapes(ours, theirs, first, second)
    mixed = {name: _mixed(ours[name], theirs[name], alpha) for name in theirs}
    save_file(mixed, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _write_merged(folder: Path, first: Path, second: Path, alpha: float) -> None:
    """Average two models of which at least one is an adapter: merged, saved as a full model."""
    one, two = (checkpoint.load_causal(str(f), "auto").model for f in (first, second))
    ours, theirs = one.state_dict(), two.state_dict()
    _same_shapes(ours, theirs, first, second)
    two.load_state_dict({name: _mixed(ours[name], theirs[name], alpha) for name in theirs})
    two.save_pretrained(folder)


def _mixed(ours: Any, theirs: Any, alpha: float) -> Any:
    return ((1 - alpha) * ours.float() + alpha * theirs.float()).to(theirs.dtype)


def front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The Pareto front of points {reward, lost}: no other has more reward for no more loss."""
    known = [p for p in points if p.get("reward") is not None and p.get("lost") is not None]
    return [p for p in known if not any(_dominates(q, p) for q in known)]


def _dominates(q: Mapping[str, Any], p: Mapping[str, Any]) -> bool:
    better = q["reward"] >= p["reward"] and q["lost"] <= p["lost"]
    return bool(better and (q["reward"] > p["reward"] or q["lost"] < p["lost"]))


def _weights(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint, sharded or not."""
    from safetensors.torch import load_file

    files = weight_files(folder, "model")
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def _same_shapes(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], first: Path, second: Path
) -> None:
    differing = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    ]
    if differing:
        raise CheckpointError(
            f"{first} and {second} can't be averaged: {len(differing)} parameters differ in name "
            f"or shape, such as {differing[0]}; average checkpoints of one architecture"
        )


def is_average_of(output: Path, first: Path, second: Path, alpha: float) -> bool:
    """True if a folder holds the average of just these weights."""
    known = checkpoint.read_lineage(output)
    hashes = [p["weights_sha256"] for p in known.get("averaged") or ()]
    return known.get("alpha") == alpha and hashes == [
        checkpoint.weights_sha256(folder) for folder in (first, second)
    ]


def _note(folder: Path, first: Path, second: Path, alpha: float) -> None:
    """lineage.json of the average: the second is its parent, the first's data are its own."""
    averaged = [checkpoint.lineage.parent_of(str(f.resolve())) for f in (first, second)]
    lineage = {
        "stage": "average",
        "parent": averaged[1],
        "data": checkpoint.read_lineage(first).get("data") or [],
        "alpha": alpha,
        "averaged": averaged,
    }
    seen = checkpoint.save.portable(lineage, folder)
    checkpoint.save.write_json(folder / checkpoint.lineage.FILE, seen)
