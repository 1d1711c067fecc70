"""Weights in pieces: what FSDP2 shards, as whole tensors for sampling and for files.

Under FSDP2 every process holds a part of each weight, gradient and optimizer moment (a DTensor).
A forward pass through `Networks` gathers them a layer at a time. Three things need more:

1. sampling and the final checkpoint, for which each process fills a plain copy of the policy with
   whole weights (so processes may sample different numbers of tokens, and no hook is in the way),
2. checkpoints, whose files always hold whole tensors, the same as without sharding,
3. weights that are kept beside the policy (its average), which stay in pieces.

All functions take plain tensors too and return them as they are. Those that gather are collective:
every process calls them, in the same order.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from align.errors import is_main_process


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether `accelerator.prepare` cuts weights into pieces."""
    return accelerator.distributed_type == DistributedType.FSDP


def keep_precision(accelerator: Accelerator) -> None:
    """Under bf16: compute in it, but add gradients up and hand results over in float32.

    accelerate's policy would round log-probabilities to 8 bits on their way out.
    """
    if accelerator.mixed_precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def at_rest(model: nn.Module) -> None:
    """Give back what forward passes have gathered; only then is every parameter a piece."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(x: Tensor) -> Tensor:
    """This process's piece, which shares memory with ``x``."""
    return x.to_local() if isinstance(x, DTensor) else x


def full(x: Tensor) -> Tensor:
    """The whole tensor, on every process. Collective."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def piece(whole: Tensor, like: Tensor) -> Tensor:
    """``whole``, which every process has, cut as ``like`` is; nothing is sent."""
    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def joined(part: Tensor, like: Tensor) -> Tensor:
    """The whole of what every process has a ``part`` of, cut as ``like`` is. Collective."""
    if not isinstance(like, DTensor):
        return part
    shape: dict[str, Any] = {"shape": like.shape, "stride": like.stride()}
    part = part.to(like.device)
    return DTensor.from_local(part, like.device_mesh, like.placements, **shape).full_tensor()


def for_file(whole: Tensor) -> Tensor:
    """A whole tensor in the machine's memory on the process that writes, nothing on the others."""
    return whole.detach().cpu().contiguous() if is_main_process() else whole.new_empty(0)


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The optimizer's state dict with whole tensors, for a file. Collective."""
    found = optimizer.state_dict()
    moments = {
        i: {k: for_file(full(v)) if isinstance(v, Tensor) else v for k, v in of.items()}
        for i, of in found["state"].items()
    }
    return {**found, "state": moments}


def load_optimizer_state(optimizer: Any, whole: dict[str, Any]) -> None:
    """Give an optimizer the state that `whole_optimizer_state` made."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def cut(value: Any, like: Tensor) -> Any:
        moment = isinstance(value, Tensor) and value.shape == like.shape and value.dim() > 0
        return piece(value, like) if moment else value

    state = {
        i: {k: cut(v, parameters[i]) for k, v in of.items()} for i, of in whole["state"].items()
    }
    optimizer.load_state_dict({**whole, "state": state})


class Replica:
    """A plain copy of a model, without memory until it is filled. Made before the model is cut."""

    def __init__(self, model: nn.Module):
        empty = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
            for p in model.parameters()
        }
        self.model = copy.deepcopy(model, dict(empty)).eval()
        self.named = dict(self.model.named_parameters())

    @contextmanager
    def filled(
        self, source: nn.Module, device: Any, dtype: torch.dtype | None = None
    ) -> Iterator[nn.Module]:
        """The copy with the weights that ``source`` has now, until the block ends. Collective.

        Args:
            source: the model that the copy was made of, cut by now and `at_rest`
            device: where the copy stands; ``"meta"``: nowhere, on a process that only gathers
            dtype: of its weights; None: that of the source's
        """
        found: dict[int, nn.Parameter] = {}
        with torch.no_grad():
            for name, parameter in source.named_parameters():
                whole = full(parameter).to(device=device, dtype=dtype, copy=True)
                found[id(self.named[name])] = nn.Parameter(whole, requires_grad=False)
        self._set(found)
        if torch.device(device).type != "meta":
            self.model.to(device)  # its buffers
        try:
            yield self.model
        finally:
            self._set({id(found[id(p)]): p for p in self.named.values()})

    def _set(self, parameters: dict[int, nn.Parameter]) -> None:
        """Replace parameters, shared ones (a tied head) by one and the same."""
        for module in self.model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = parameters[id(parameter)]
