"""What a killed run needs to go on as if nothing had happened.

No random state is among it: prompts, completions and mini-batches follow from the seed, the number
of the rollout and the rank. A checkpoint is a folder that appears in one rename, complete.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from align import checkpoint
from align.errors import CheckpointError, is_main_process
from align.ppo.accelerator import is_value
from align.ppo.rewards import RunningScale
from align.ppo.sharding import (
    at_rest,
    for_file,
    full,
    joined,
    load_optimizer_state,
    local,
    piece,
    whole_optimizer_state,
)

PREFIX = "checkpoint-"
NETWORKS = "networks"
Weights = dict[str, torch.Tensor]


@dataclass
class Progress:
    """Counters and running values of a run, after a whole number of rollouts."""

    rollout: int = 0
    step: int = 0
    episodes: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    kl_coef: float = 0.0
    stopped: str = ""
    without_score: int = 0
    held_out: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    scale: dict[str, float] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


class Restored(NamedTuple):
    """Where a run stood, and the further policies that it kept, by name."""

    progress: Progress
    kept: dict[str, Weights]


def scale_of(progress: Progress) -> RunningScale:
    """The running mean and spread of scores that a checkpoint holds."""
    scale = RunningScale()
    vars(scale).update(progress.scale)
    return scale


def trained(networks: nn.Module) -> Weights:
    """The parameters that learn, by name; a frozen backbone is not written again and again."""
    at_rest(networks)
    return {n: p.detach() for n, p in networks.named_parameters() if p.requires_grad}


def policy_weights(networks: nn.Module) -> Weights:
    """A copy of the policy's part of `trained`, in the machine's memory; of sharded weights this
    process's piece.
    """
    parts = {n: local(p) for n, p in trained(networks).items() if not is_value(n)}
    return {n: p.to("cpu", copy=True) for n, p in parts.items()}


@torch.no_grad()
def load_weights(networks: nn.Module, weights: Weights) -> None:
    """Set parameters that learn, by name, from what `policy_weights` gave."""
    parameters = trained(networks)
    for name, value in weights.items():
        local(parameters[name]).copy_(value)


def save(
    output_dir: Path,
    progress: Progress,
    networks: nn.Module,
    optimizer: Any,
    kept: dict[str, Weights],
    run: dict[str, Any],
) -> None:
    """Write ``checkpoint-<step>`` and delete older ones; a kill leaves a complete one.

    Every process calls this and the first one writes: weights may be in pieces, files never are.

    Args:
        output_dir: folder of the run
        progress: where the run stands
        networks: policy and value model
        optimizer: of both
        kept: see `Restored`
        run: what must be the same when the run goes on (seed, batch size, …)
    """
    parameters = trained(networks)
    files = {NETWORKS: {n: for_file(full(p)) for n, p in parameters.items()}}
    for name, parts in kept.items():
        files[name] = {n: for_file(joined(p, parameters[n])) for n, p in parts.items()}
    moments = whole_optimizer_state(optimizer)
    if not is_main_process():
        return
    target = output_dir / f"{PREFIX}{progress.step}"
    with checkpoint.atomic_dir(target) as folder:
        for name, weights in files.items():
            save_file(weights, folder / f"{name}.safetensors")
        with (folder / "optimizer.pt").open("wb") as file:  # a path would hide a full disk
            torch.save(moments, file)
        state = {"progress": asdict(progress), "run": run}
        (folder / "state.json").write_text(json.dumps(state, indent=1))
    for older in output_dir.glob(f"{PREFIX}*"):
        if older != target:
            shutil.rmtree(older)


def restore(folder: Path, networks: nn.Module, optimizer: Any, run: dict[str, Any]) -> Restored:
    """Load a checkpoint into networks and optimizer.

    Raises:
        CheckpointError: it belongs to a run with other settings.
    """
    state = json.loads((folder / "state.json").read_text())
    other = [k for k, v in run.items() if state["run"].get(k) != v]
    if other:
        raise CheckpointError(
            f"{folder} was written with {other[0]} = {state['run'].get(other[0])}, this run has "
            f"{run[other[0]]}; resume with the same settings or choose another output_dir"
        )
    parameters = trained(networks)

    def pieces(file: Path) -> Weights:
        return {n: local(piece(w, parameters[n])) for n, w in load_file(file).items()}

    load_weights(networks, pieces(folder / f"{NETWORKS}.safetensors"))
    load_optimizer_state(optimizer, torch.load(folder / "optimizer.pt", weights_only=True))
    kept = {f.stem: pieces(f) for f in folder.glob("*.safetensors") if f.stem != NETWORKS}
    kept = {k: {n: p.cpu() for n, p in w.items()} for k, w in kept.items()}
    return Restored(Progress(**state["progress"]), kept)
