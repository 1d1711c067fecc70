"""LoRA layers in fewer operations: same numbers to rounding, less time and memory than peft's.

``y = x W^T + s (x A^T) B^T`` is added up in place, and its backward pass is written out: peft keeps
two more tensors of y's size for every layer, scales and adds them one by one, and turns bfloat16
activations into float32 where adapters are float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class LoraLinear(torch.autograd.Function):
    """``x W^T + b + scale * (x A^T) B^T``, with gradients for x, A and B; W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """Apply to ``x`` (..., I).

        Args:
            ctx: keeps what the backward pass needs
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
        y.addmm_(low, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for the arguments of `forward`."""
        x, weight, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])  # (N, O)
        into_low = (grad @ b.to(x.dtype)).mul_(ctx.scale)  # (N, R)
        grad_a = into_low.T @ x if ctx.needs_input_grad[3] else None
        grad_b = (grad.T @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(into_low, a.to(x.dtype))
            grad_x = grad_x.view(*grads[0].shape[:-1], -1)
        return (
            grad_x,
            None,
            None,
            None if grad_a is None else grad_a.to(a.dtype),
            None if grad_b is None else grad_b.to(b.dtype),
            None,
        )


def fuse(model: nn.Module) -> None:
    """Let the plain LoRA layers of a peft model compute as `LoraLinear`."""
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.forward = _Fused(layer, layer.forward)


class _Fused:
    """Forward pass of one layer; peft's own wherever something is not the plain case."""

    def __init__(self, layer: Any, peft_forward: Any):
        self.layer, self.peft_forward = layer, peft_forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        name = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
        if (
            args
            or kwargs
            or layer.disable_adapters
            or layer.merged
            or name not in layer.lora_A
            or name in layer.lora_variant
            or layer.lora_bias[name]
            or torch.is_autocast_enabled(x.device.type)
        ):
            return self.peft_forward(x, *args, **kwargs)
        base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
        if x.dtype != base.weight.dtype or any(isinstance(w, DTensor) for w in (base.weight, a, b)):
            return self.peft_forward(x)
        return LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[name])
