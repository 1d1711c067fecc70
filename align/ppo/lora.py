"""LoRA layers in fewer operations: same numbers to rounding, less time and memory than peft's.

``y = x W^T + s (x A^T) B^T`` is added up in place. peft keeps two more tensors of y's size for
every layer, scales and adds them one by one, and turns bfloat16 activations into float32 where
adapters are float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from align.streams import SMALL


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """``x W^T + bias + scale * (x A^T) B^T``.

    Args:
        x: ``(..., I)``
        weight: ``(O, I)``, of the dtype of x
        bias: ``(O,)`` or None
        a: ``(R, I)``
        b: ``(O, R)``
        scale: alpha / r, or what peft makes of it

    Returns:
        ``(..., O)``
    """
    flat = x.reshape(-1, x.shape[-1])  # (N, I)
    low = flat @ a.to(x.dtype).T  # (N, R)
    y = nn.functional.linear(flat, weight, bias)  # (N, O)
    return y.addmm_(low, b.to(x.dtype).T, alpha=scale).view(*x.shape[:-1], -1)


def fuse(model: nn.Module) -> None:
    """Let the plain LoRA layers of a peft model compute by `lora_linear`."""
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.forward = _Fused(layer, layer.forward)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """For sampling in small networks: the adapter that is on as one weight with its base.

    The sum is float32, in memory of its own: in bfloat16 a small change would vanish in a large
    weight.
    """
    layers = [m.forward for m in model.modules() if isinstance(m.forward, _Fused)]
    weights = [layer.layer.base_layer.weight for layer in layers]
    small = sum(weight.numel() for weight in weights) <= SMALL
    try:
        for layer, weight in zip(layers, weights, strict=True):
            plain = layer.plain(weight)
            if small and plain:
                a, b = plain.a.float(), plain.b.float()
                layer.whole = torch.addmm(weight.float(), b, a, alpha=plain.scale)
        yield
    finally:
        for layer in layers:
            layer.whole = None


class Adapter(NamedTuple):
    """The weights of one layer's adapter: ``(R, I)``, ``(O, R)`` and the scale of their product."""

    a: Tensor
    b: Tensor
    scale: float


class _Fused:
    """Forward pass of one layer; peft's own wherever something is not the plain case."""

    def __init__(self, layer: Any, peft_forward: Any):
        self.layer, self.peft_forward = layer, peft_forward
        self.whole: Tensor | None = None  # see `merged`

    def plain(self, x: Tensor) -> Adapter | None:
        """The adapter that is on, where the layer is of the plain kind and ``x`` of its dtype."""
        layer = self.layer
        name = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
        if (
            layer.disable_adapters
            or layer.merged
            or name not in layer.lora_A
            or name in layer.lora_variant
            or layer.lora_bias[name]
            or torch.is_autocast_enabled(x.device.type)
        ):
            return None
        base, a, b = layer.base_layer.weight, layer.lora_A[name].weight, layer.lora_B[name].weight
        if x.dtype != base.dtype or any(isinstance(w, DTensor) for w in (base, a, b)):
            return None
        return Adapter(a, b, layer.scaling[name])

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.layer.base_layer
        if self.whole is not None:
            bias = None if base.bias is None else base.bias.float()
            return nn.functional.linear(x.float(), self.whole, bias).to(x.dtype)
        adapter = None if args or kwargs else self.plain(x)
        if adapter is None:
            return self.peft_forward(x, *args, **kwargs)
        return lora_linear(x, base.weight, base.bias, *adapter)
