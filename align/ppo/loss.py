"""The losses of PPO: pure functions on the real completion tokens of a micro-batch, ``(N,)``.

Each returns a *sum* over tokens. The trainer divides by the number of tokens of the whole
mini-batch over all processes, so the result doesn't depend on how the mini-batch was cut up.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from align.ppo.advantages import kl_estimates, log_ratio


class PolicyLoss(NamedTuple):
    """Loss of the policy and what is worth watching; sums over N tokens are scalars ``()``."""

    loss: Tensor
    ratio_sum: Tensor
    ratio_max: Tensor
    clipped: Tensor
    approx_kl: Tensor


class ValueLoss(NamedTuple):
    """Loss of the value model and the number of clipped tokens, sums over N tokens, ``()``."""

    loss: Tensor
    clipped: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    cliprange: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Clipped surrogate (1707.06347, equation 7), optionally with a second clip.

    The dual clip (1912.09729, equation 5) bounds the loss of a token with a negative advantage
    and a large ratio by ``-dual_clip * advantage``; ``dual_clip`` is above 1.

    Args:
        logprobs: ``(N,)``, of the policy in training
        old_logprobs: ``(N,)``, of the policy that sampled
        advantages: ``(N,)``
        cliprange: half width of the interval around 1 in which the ratio counts
        dual_clip: bound for negative advantages, None: no second clip
    """
    ratio = torch.exp(log_ratio(logprobs, old_logprobs))  # (N,)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    losses = torch.maximum(plain, clipped)  # (N,)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    with torch.no_grad():
        k3 = kl_estimates(old_logprobs, logprobs).k3
    return PolicyLoss(
        loss=losses.sum(),
        ratio_sum=ratio.detach().sum(),
        ratio_max=ratio.detach().max(),
        clipped=(clipped > plain).sum(),
        approx_kl=k3.sum(),
    )


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float
) -> ValueLoss:
    """Half the squared error, with values kept near those of the rollout (1707.06347's code).

    Args:
        values: ``(N,)``, of the value model in training
        old_values: ``(N,)``, at the time of the rollout
        returns: ``(N,)``
        cliprange_value: how far a value may move from the old one before its gradient stops
    """
    near = values.clamp(old_values - cliprange_value, old_values + cliprange_value)  # (N,)
    plain, clipped = (values - returns).square(), (near - returns).square()  # (N,)
    return ValueLoss(
        loss=torch.maximum(plain, clipped).sum() / 2, clipped=(clipped > plain).sum().detach()
    )


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the distributions ``softmax(logits)``: ``(N, V)`` to ``(N,)``."""
    logprobs = torch.log_softmax(logits, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)
