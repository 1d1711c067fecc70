"""How the networks meet accelerate: processes, precision, optimizer, gradient checkpointing."""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch import Tensor, nn

from align.config import PPOStage
from align.errors import AlignError, ConfigError
from align.ppo.models import Networks, causal_lm

Result = TypeVar("Result")


def new_accelerator(config: PPOStage) -> Accelerator:
    """The accelerator of this process.

    Raises:
        ConfigError: the launcher started several processes that don't know of each other.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.bf16 else "no",
        log_with=config.report_to or None,
        project_dir=config.output_dir,
        # A forward pass runs one of the two networks.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        raise ConfigError(
            f"the launcher started {world} processes but accelerate joined "
            f"{accelerator.num_processes}; launch with --config_file recipes/accelerate/cpu.yaml "
            "(on CPU) or ddp.yaml"
        )
    return accelerator


class Group:
    """All processes of a run; each holds equally many rows of a rollout."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.world, self.rank = accelerator.num_processes, accelerator.process_index

    def sum(self, x: Tensor) -> Tensor:
        """``x`` added up over processes."""
        return self.accelerator.reduce(x, "sum") if self.world > 1 else x

    def mean(self, x: Tensor) -> float:
        """Mean of ``(B,)`` over the rows of all processes."""
        return (self.sum(x.double().mean()) / self.world).item()

    def max(self, x: Tensor) -> float:
        """Largest of a scalar."""
        return self.accelerator.gather(x.reshape(1)).max().item()

    def together(self, work: Callable[[], Result]) -> Result:
        """The result of ``work`` on this process; an error of one process is raised on all.

        Else the one that fails would end in silence, for rank 0 alone speaks, and the launcher
        would end the others.
        """
        result: Result | None = None
        errors: list[AlignError] = []
        try:
            result = work()
        except AlignError as error:
            errors = [error]
        everywhere = self.rows(errors)
        if everywhere:
            raise everywhere[0]
        return cast(Result, result)

    def rows(self, own: list[Any]) -> list[Any]:
        """Python objects of all processes in one list, in the order of the processes."""
        return gather_object(own) if self.world > 1 else own


def new_optimizer(config: PPOStage, networks: Networks) -> torch.optim.AdamW:
    """AdamW with one group for the policy and one for the value model; eps is 1e-5 as in
    "N+ details" (2403.17031), detail 18.
    """
    value: list[nn.Parameter] = []
    policy: list[nn.Parameter] = []
    for name, parameter in networks.named_parameters():
        if parameter.requires_grad:
            (value if is_value(name) else policy).append(parameter)
    rates = (config.learning_rate, config.value_learning_rate or config.learning_rate)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "peak_lr": rate}
        for parameters, rate in zip((policy, value), rates, strict=True)
    ]
    return torch.optim.AdamW(groups, eps=1e-5, weight_decay=config.weight_decay)


def is_value(name: str) -> bool:
    """Whether a parameter of `Networks` belongs to the value model."""
    return name.startswith(("value_backbone.", "value_head.")) or ".value." in name


def enable_checkpointing(networks: Networks) -> None:
    """Recompute activations of both networks in their backward passes."""
    lm = causal_lm(networks.policy)
    if networks.value_backbone is None:  # the frozen embedding would cut the graph off
        lm.enable_input_require_grads()
    models: list[nn.Module] = [lm]
    models += [networks.value_backbone] if networks.value_backbone is not None else []
    for model in models:
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
