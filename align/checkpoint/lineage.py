"""Where a checkpoint comes from: parent, data, recipe, code, versions, hardware."""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import align
from align import paths
from align.checkpoint.inspect import local_folder, weight_files
from align.checkpoint.save import CONTROL, file_sha256, portable, write_json
from align.checkpoint.tokenizer_files import read_json
from align.errors import CheckpointError

FILE = "lineage.json"
PARENTS = ("model_name_or_path", "reward_model", "value_model", "gold_reward_model")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def weights_sha256(path: str | Path, revision: str | None = None) -> str:
    """One hash over all weight files of a checkpoint (an adapter's own files only)."""
    folder = local_folder(str(path), revision)
    if folder is None:
        raise CheckpointError(f"{path} is not on this machine; its weights can't be hashed")
    stem = "adapter_model" if (folder / "adapter_config.json").is_file() else "model"
    files = weight_files(folder, stem)
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def checkpoint_sha256(path: str | Path, revision: str | None = None) -> str | None:
    """One hash over what decides a checkpoint's outputs: weights, configs, an adapter's base too.

    None for one that is not on this machine.
    """
    try:
        folder = local_folder(str(path), revision)
    except CheckpointError:
        folder = None
    if folder is None:
        return None
    files = [folder / name for name in ("config.json", "adapter_config.json")]
    found = [weights_sha256(folder), *(file_sha256(file) for file in files if file.is_file())]
    if files[1].is_file():
        adapter = read_json(files[1])
        base = adapter["base_model_name_or_path"], adapter.get("revision")
        found.append(checkpoint_sha256(*base) or str(base))
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def inputs(config: Any, data: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, str]:
    """What a run starts from -> its hash: its continuation must start from the same.

    Reward functions are not among it: correcting one that failed is why people resume.

    Args:
        config: of the stage
        data: what lineage.json will say of the data
        tokenizer: with the chat template of the run
    """
    found: dict[str, str | None] = {"chat_template": chat_template_sha256(tokenizer)}
    for field in PARENTS:
        name = getattr(config, field, None)
        revision = config.model_revision if field == "model_name_or_path" else None
        found[field] = checkpoint_sha256(name, revision) if name else None
    for row in data:
        name = f"data {row['card']}"
        found[name] = (found.get(name) or "") + row["sha256"]  # a card may serve two purposes
    return {name: sha256 for name, sha256 in found.items() if sha256}


def chat_template_sha256(tokenizer: Any) -> str | None:
    """Hash of the template's text; of a tokenizer or of the text itself; None without one."""
    text = tokenizer if isinstance(tokenizer, str) else getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(text.encode()).hexdigest() if text else None


def recipe_sha256(config: Any) -> str:
    """Hash of everything in a config that changes what is learnt (not paths, logs, resume)."""
    seen = portable(asdict(config), Path(config.output_dir))  # a parent beside it, wherever that is
    values = {key: value for key, value in seen.items() if key not in CONTROL}
    text = json.dumps({"stage": config.stage, **values}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_lineage(folder: str | Path) -> dict[str, Any]:
    """The lineage of a checkpoint, {} where it has none.

    Raises:
        CheckpointError: the file is not JSON.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); copy it again") from None


def write_lineage(
    output_dir: str | Path,
    *,
    stage: str,
    config: Any,
    parent: str,
    data: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    started: float,
    tokens: int,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write lineage.json beside weights that are already there; ``started`` is time.time().

    Paths in it are those that the finished checkpoint sees: the SFT checkpoint of a run is
    ``../sft``.
    """
    now = time.time()
    lineage = {
        "stage": stage,
        "parent": parent_of(parent, config.model_revision),
        "data": [dict(row) for row in data],
        "config": asdict(config),
        "recipe_sha256": recipe_sha256(config),
        "weights_sha256": weights_sha256(output_dir),
        "chat_template_sha256": chat_template_sha256(tokenizer),
        "code_version": code_version(),
        "seed": config.seed,
        "versions": versions(),
        "hardware": hardware(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "wall_seconds": round(now - started, 1),
        "tokens": tokens,
        "energy_kwh": None,
        **(extra or {}),
    }
    found: dict[str, Any] = portable(lineage, Path(config.output_dir))
    write_json(Path(output_dir) / FILE, found)
    return found


def parent_of(name: str, revision: str | None = None) -> dict[str, Any]:
    """A parent: path or Hub id, revision, hashes."""
    folder = local_folder(name, revision)
    before = read_lineage(folder) if folder else {}
    return {
        "path": name,
        "revision": revision,
        "weights_sha256": weights_sha256(name, revision),
        "recipe_sha256": before.get("recipe_sha256"),
        "stage": before.get("stage"),
    }


def code_version() -> str:
    """The package's version, and the commit when it runs from a checkout."""
    git = ["git", "-C", str(paths.PACKAGE), "rev-parse", "--short=12", "HEAD"]
    if not (paths.PACKAGE.parent / ".git").exists():
        return align.__version__
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return align.__version__
    return f"{align.__version__}+g{done.stdout.strip()}"


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python, align and the packages that decide the numbers."""
    found = {"python": platform.python_version(), "align": align.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What it ran on."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "gpus": gpus,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
    }
