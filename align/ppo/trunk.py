"""The trunk: layers below the first adapter, which policy, value model and reference share.

With ``lora_layers`` the first layers have no adapters, so they give the same states to all three
networks in every epoch. A rollout computes these states once, and passes begin above the trunk
(trlX trains its last ``num_layers_unfrozen`` layers over a frozen trunk in the same way).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from align.checkpoint import decoder_layers


class Trunk(NamedTuple):
    """States ``(B, L, H)`` after the first ``layers`` layers."""

    layers: int
    states: Tensor


def shared_layers(backbone: nn.Module) -> int:
    """How many of the first layers are neither trained nor skipped by what later layers read.

    0 where other weights than those of later layers are trained, where something has put itself
    before a layer, or where a tensor of states is not all that one layer hands to the next.
    """
    _, layers = decoder_layers(backbone)
    trained = {id(p) for p in backbone.parameters() if p.requires_grad}
    own = [{id(p) for p in layer.parameters()} for layer in layers]
    count = next((i for i, ids in enumerate(own) if ids & trained), 0)
    later = set[int]().union(*own[count:])
    if not count or trained - later or any("forward" in vars(layer) for layer in layers):
        return 0
    ids = torch.arange(8, device=next(backbone.parameters()).device).view(2, 4)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    try:
        with torch.no_grad():
            trunk = Trunk(count, trunk_states(backbone, count, **inputs))
            want = backbone(**inputs).last_hidden_state
            with above(trunk, backbone):
                got = backbone(**inputs).last_hidden_state
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return 0
    return count if torch.allclose(got, want, rtol=1e-3, atol=1e-3) else 0


@torch.no_grad()
def trunk_states(backbone: nn.Module, count: int, **inputs: Any) -> Tensor:
    """States ``(B, L, H)`` after the first ``count`` layers, of what the backbone is given."""
    _, layers = decoder_layers(backbone)
    found: list[Tensor] = []
    hook = layers[count - 1].register_forward_hook(lambda layer, given, out: found.append(out))
    try:
        with replaced(layers[count:], lambda hidden, *args, **kwargs: hidden):
            backbone(**inputs)
    finally:
        hook.remove()
    (states,) = found
    if not isinstance(states, Tensor):
        raise TypeError(f"{type(layers[0]).__name__} hands on more than states")
    return states


@contextmanager
def above(trunk: Trunk | None, backbone: nn.Module) -> Iterator[None]:
    """Let a forward pass of the backbone begin above the trunk, with the trunk's states."""
    if trunk is None:
        yield
        return
    _, layers = decoder_layers(backbone)
    with replaced(layers[: trunk.layers], lambda hidden, *args, **kwargs: trunk.states):
        yield


@contextmanager
def replaced(modules: Sequence[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let modules whose ``forward`` nobody else has replaced do something else."""
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward
