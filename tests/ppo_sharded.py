"""A run of tiny PPO under torchrun, with weights cut by FSDP2 or whole; see test_ppo_sharding.py.

accelerate ignores FSDP on CPU without a word: `force` switches it on, and `check` sees that it is.
"""

import dataclasses
import json
import sys
from pathlib import Path

import ppo_tiny
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from align.ppo import trainer as module
from align.ppo.sharding import full

PLAIN = module.new_accelerator


def force(config):
    """The accelerator that a config gives, with FSDP2 on CPU."""
    accelerator = PLAIN(config)
    for state in (PartialState._shared_state, accelerator.state.__dict__):
        state["distributed_type"] = DistributedType.FSDP
        state["device"] = torch.device("cpu")
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    if config.bf16:
        accelerator.state.fsdp_plugin.set_mixed_precision("bf16")
    return accelerator


def check(networks) -> None:
    """FSDP2 is really on: every weight is a piece, every layer gathers its own."""
    assert all(isinstance(p, DTensor) for p in networks.parameters())
    pieces = sum(p.to_local().numel() for p in networks.parameters())
    assert pieces < 0.6 * sum(p.numel() for p in networks.parameters())
    units = [type(m).__name__ for m in networks.modules() if isinstance(m, FSDPModule)]
    assert sum("DecoderLayer" in unit for unit in units) >= 2, units


def main(out: Path, job: dict) -> None:
    """Train, save what came out of it; with ``stop`` die at that rollout, and resume if told so."""
    if job["fsdp"]:
        module.new_accelerator = force
    settings = ppo_tiny.config(out / "run", **job["options"])
    trainer = ppo_tiny.trainer(settings)
    networks = trainer.accelerator.unwrap_model(trainer.networks)
    if job["fsdp"]:
        check(networks)
    if job.get("stop"):
        complete = trainer._complete

        def killed(prompts, stream):
            if stream == job["stop"]:
                raise SystemExit(0)
            return complete(prompts, stream)

        trainer._complete = killed
    gradients = {}
    clip = trainer.accelerator.clip_grad_norm_

    def keep(parameters, limit):
        if not gradients:
            for name, parameter in networks.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = full(parameter.grad).clone()
        return clip(parameters, limit)

    trainer.accelerator.clip_grad_norm_ = keep
    trainer.train()
    weights = {n: full(p).detach() for n, p in networks.named_parameters() if p.requires_grad}
    trainer.finish(lambda folder: (folder / "lineage.json").write_text("{}"))
    if trainer.accelerator.is_main_process:
        save_file({k: w.contiguous() for k, w in weights.items()}, out / "weights.safetensors")
        save_file(gradients, out / "gradients.safetensors")
        (out / "progress.json").write_text(json.dumps(dataclasses.asdict(trainer.progress)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
