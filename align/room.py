"""Whether a stage has room: free disk and memory against what it roughly needs."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from align.checkpoint.inspect import CheckpointInfo, inspect_checkpoint
from align.errors import ConfigError


def check_room(config: Any, info: CheckpointInfo | None, say: Any) -> None:
    """Free disk and memory against rough needs.

    Raises:
        ConfigError: the disk can't be written or has not three checkpoints' room; the weights and
            optimizer alone need more memory than is free.
    """
    folder = Path(config.output_dir).absolute()
    there = next(p for p in (folder, *folder.parents) if p.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        raise ConfigError(
            f"can't write to {there} ({error.strerror}); give another --output_dir"
        ) from error
    if info is None:
        return
    need = estimate(config, info)
    free_disk = shutil.disk_usage(there).free
    if free_disk < 3 * need.checkpoint:
        raise ConfigError(
            f"{there} has {gib(free_disk)} free and three checkpoints of {config.stage} need "
            f"{gib(3 * need.checkpoint)}; free some space, or give another --output_dir"
        )
    free, where = free_memory()
    say(
        f"room: about {gib(need.state + need.activations)} of {gib(free)} {where} memory, "
        f"{gib(need.checkpoint)} a checkpoint of {gib(free_disk)} free on the disk"
    )
    if need.state > free:
        raise ConfigError(
            f"weights, gradients and optimizer of {config.model_name_or_path} need about "
            f"{gib(need.state)} and {gib(free)} of {where} memory are free; use --use_peft true, "
            "--dtype bfloat16, or more devices with recipes/accelerate/fsdp2.yaml"
        )


class Need(NamedTuple):
    """Bytes that one process needs, roughly."""

    checkpoint: int
    state: int
    activations: int


def estimate(config: Any, info: CheckpointInfo) -> Need:
    """Bytes: weights + gradients + two Adam moments, and activations, of one process.

    Without LoRA, PPO holds a policy, a value model, a reference and, where there is one, a reward
    model. Its checkpoint holds a policy more for each that it keeps beside the one in training.
    Activations: about 34 bytes a token, layer and unit of width (2205.05198, section 4.1, halved
    or doubled with the type), one layer's worth with gradient checkpointing.
    """
    parent = inspect_checkpoint(info.base) if info.base else info
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[config.dtype]
    total = parent.parameters
    trained = total
    if config.use_peft:  # both factors of every linear layer, seven a block
        adapted = min(config.lora_layers or parent.layers, parent.layers)
        trained = 7 * adapted * 2 * config.lora_r * parent.hidden_size
    ppo = config.stage == "ppo"  # it trains a value model too
    kept = sum(getattr(config, name, None) is not None for name in ("ema_decay", "kl_budget"))
    models = 1 if config.use_peft or not ppo else 3 + bool(config.reward_model)
    held = models * (total / 2 if config.load_in_4bit else total * width)
    learning = trained * (2 if ppo else 1)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", os.environ.get("ACCELERATE_USE_DEEPSPEED", ""))
    shards = int(os.environ.get("WORLD_SIZE", "1")) if sharded.lower() == "true" else 1
    tokens = config.per_device_train_batch_size * config.max_length
    layers = 1 if config.gradient_checkpointing else max(parent.layers, 1)
    bytes_a_unit = 17 * (2 if config.bf16 else width)
    return Need(
        checkpoint=int((learning * 3 + trained * kept) * width),
        state=int((held + learning * width * 3) / shards),
        activations=int(tokens * layers * parent.hidden_size * bytes_a_unit),
    )


def free_memory() -> tuple[int, str]:
    """Free bytes of the first GPU, else of the machine."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    if shutil.which("nvidia-smi"):
        try:
            out = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
            return int(out.stdout.split()[0]) * 2**20, "GPU"
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            pass
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines() if sys.platform == "linux" else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024, "machine"
    return pages, "machine"


def gib(size: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"
