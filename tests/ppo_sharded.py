"""Runs of tiny PPO under torchrun, with weights cut by FSDP2 or whole; see test_ppo_sharding.py.

accelerate ignores FSDP on CPU without a word: `force` switches it on, and `check` sees that it is.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import ppo_tiny
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from align import checkpoint
from align.ppo import build_networks, build_rewards, state
from align.ppo import trainer as module
from align.ppo.sharding import full

PLAIN = module.new_accelerator


def force(config):
    """The accelerator that a config gives, with FSDP2 on CPU."""
    accelerator = PLAIN(config)
    for shared_state in (PartialState._shared_state, accelerator.state.__dict__):
        shared_state["distributed_type"] = DistributedType.FSDP
        shared_state["device"] = torch.device("cpu")
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


def shared(settings):
    """A trainer whose reward model is an adapter of the policy's backbone."""
    tokenizer = checkpoint.load_tokenizer(settings.model_name_or_path)
    reward = build_rewards(settings)
    lm = checkpoint.load_policy(settings, tokenizer)
    networks = build_networks(settings, lm, tokenizer, reward)
    assert networks.reward_head is not None
    eos = checkpoint.eos_token_ids(lm, tokenizer)
    return module.PPOTrainer(
        settings, networks, tokenizer, reward, ppo_tiny.RECORDS, [], eos_token_ids=eos
    )


class Killed(Exception):
    """At the start of the rollout that a job names."""


def run(out: Path, job: dict) -> None:
    """One job: train, and save what came out of it. With ``stop`` it dies at that rollout."""
    module.new_accelerator = force if job["fsdp"] else PLAIN
    out.mkdir(exist_ok=True)
    settings = ppo_tiny.config(out / "run", **job["options"])
    trainer = shared(settings) if settings.reward_model else ppo_tiny.trainer(settings)
    networks = trainer.accelerator.unwrap_model(trainer.networks)
    if job["fsdp"]:
        check(networks)
    complete, clip, gradients = trainer._complete, trainer.accelerator.clip_grad_norm_, {}

    def killed(prompts, stream):
        if stream == job.get("stop"):
            if trainer.accelerator.is_main_process:
                shutil.copytree(out / "run", job["keep"])
            raise Killed
        return complete(prompts, stream)

    def keep(parameters, limit):
        if not gradients:
            for name, parameter in networks.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = full(parameter.grad).clone()
        return clip(parameters, limit)

    trainer._complete, trainer.accelerator.clip_grad_norm_ = killed, keep
    trainer.train()
    if settings.bf16:  # computed in bfloat16, handed over in float32
        logprobs = trainer._score(trainer.prompts, trainer._complete(trainer.prompts, 0)).logprobs
        assert (logprobs != logprobs.bfloat16()).any()
    weights = {n: full(p) for n, p in state.trained(networks).items()}
    trainer.finish(lambda folder: (folder / "lineage.json").write_text("{}"))
    if trainer.accelerator.is_main_process:
        save_file({k: w.contiguous() for k, w in weights.items()}, out / "weights.safetensors")
        save_file(gradients, out / "gradients.safetensors")
        (out / "progress.json").write_text(json.dumps(dataclasses.asdict(trainer.progress)))


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        AcceleratorState._reset_state(reset_partial_state=True)
        with contextlib.suppress(Killed):
            run(Path(job["out"]), job)
