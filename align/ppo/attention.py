"""Attention in float32 for bfloat16 networks on a CPU, where PyTorch's fused backward pass is slow.

Measured at 8 rows of 72 tokens with 4 heads of 32: 5.8 ms in bfloat16, 1.1 ms in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn

NAME = "sdpa_float32"


def use_float32_attention(*models: Any) -> None:
    """Let transformers models that use ``sdpa`` call `attend` from now on."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    for model in models:
        if model is not None and model.config._attn_implementation == "sdpa":
            model.config._attn_implementation = NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention with the arguments of transformers' own functions.

    Args:
        module: the attention layer
        query: ``(B, H, L, D)``
        key: ``(B, G, S, D)``, each head for H / G queries
        value: ``(B, G, S, E)``
        mask: bool, or added to the weights, ``(B, 1, L, S)``; None: causal
        **options: ``scaling`` and others

    Returns:
        ``(B, L, H, E)`` of the query's dtype, and None in place of the weights
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    with torch.autocast(query.device.type, enabled=False):
        out, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), mask, **options
        )
    return out.to(query.dtype), None
