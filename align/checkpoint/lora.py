"""The LoRA adapter that a stage trains: its settings, and whether the model has its layers."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from align.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from align.config import StageConfig


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without three warnings of peft: it reads an attribute that transformers has renamed, it tells
    that it saves a resized embedding (only in checkpoints to resume from), and it looks on the Hub
    for a base that is below ALIGN_DATA.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        warnings.filterwarnings("ignore", message="Could not find a config file in")
        yield


def decoder_layers(model: nn.Module) -> tuple[str, Sequence[nn.Module]]:
    """Name and modules of a decoder's list of layers; ``("", [])`` where it has none."""
    from torch.nn import ModuleList

    for name, module in model.named_modules():
        own = name.rpartition(".")[-1]
        if isinstance(module, ModuleList) and own in ("layers", "h", "blocks"):
            return own, list(module)
    return "", []


def lora_config(config: StageConfig, task: str, model: nn.Module) -> Any:
    """The adapter that a stage trains, or None for all weights.

    Args:
        config: of the stage
        task: ``CAUSAL_LM`` or ``SEQ_CLS``
        model: that gets the adapter; it is not changed

    Raises:
        ConfigError: a name in lora_target_modules stands for no linear layer of the model, or it
            has fewer layers than lora_layers.
    """
    if not config.use_peft:
        return None
    from peft import LoraConfig

    if config.lora_target_modules != "all-linear":
        _check_targets(model, config.lora_target_modules)
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
        # peft's layers_to_transform refuses "all-linear"
        exclude_modules=_below(model, config.lora_layers),
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def _below(model: nn.Module, last: int | None) -> str | None:
    """A pattern of the modules below the ``last`` layers; None: of none."""
    name, layers = decoder_layers(model)
    if last is not None and last > len(layers):
        raise ConfigError(
            f"lora_layers is {last}, but {type(model).__name__} has {len(layers)} layers; lower "
            "it, or leave it out for adapters in all of them"
        )
    if last is None or last == len(layers):
        return None
    numbers = "|".join(map(str, range(len(layers) - last)))
    return rf"(.*\.)?{name}\.({numbers})\..*"


def _check_targets(model: Any, targets: list[str]) -> None:
    """Where one of several names fits nowhere, peft says nothing and trains what is left."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    def takes(module: nn.Module) -> bool:
        return hasattr(module, "in_features") or isinstance(module, Conv1D | nn.Embedding)

    there = dict(model.named_modules())
    there.pop("")
    there.pop("score", None)  # a reward model's head, which is trained whole
    known = list(dict.fromkeys(n.rpartition(".")[2] for n, m in there.items() if takes(m)))
    if not targets:
        raise ConfigError(
            "lora_target_modules is empty; name layers, or leave it out for all linear layers"
        )
    for target in targets:
        found = [m for n, m in there.items() if n == target or n.endswith(f".{target}")]
        if found and all(map(takes, found)):
            continue
        wrong = next((m for m in found if not takes(m)), None)
        is_what = "no layer" if wrong is None else f"a {type(wrong).__name__}, no linear layer,"
        near = difflib.get_close_matches(target, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise ConfigError(
            f"lora_target_modules names {target}, which is {is_what} of {type(model).__name__}; "
            f"{hint} (left out: all linear layers)"
        )
