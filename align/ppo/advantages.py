"""From log-probabilities, scores and values to advantages: pure functions on ``(B, T)`` tensors.

``T`` counts completion tokens only, the prompt is never in it. ``mask`` is True on a real
completion token (the stop token is one) and False on padding. A row is never empty.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 10.0  # nats; exp stays finite in every dtype that we compute in


class KLEstimates(NamedTuple):
    """Three estimates of KL(policy || reference) per token, each ``(B, T)``.

    Schulman, "Approximating KL divergence" (2020): k1 is unbiased and can be negative, k2 is
    biased with little variance, k3 is unbiased and never negative.
    """

    k1: Tensor
    k2: Tensor
    k3: Tensor


class Moments(NamedTuple):
    """Mean and variance (biased) over real tokens, scalars ``()``."""

    mean: Tensor
    var: Tensor


class Advantages(NamedTuple):
    """Advantages and returns = advantages + values, each ``(B, T)``, 0 on padding."""

    advantages: Tensor
    returns: Tensor


def log_ratio(logprobs: Tensor, other: Tensor) -> Tensor:
    """``logprobs - other``, clamped to ±10 nats. Any shape."""
    return (logprobs - other).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> KLEstimates:
    """k1, k2 and k3 of samples drawn from the policy. Any shape in, the same shape out."""
    k1 = log_ratio(logprobs, ref_logprobs)
    return KLEstimates(k1=k1, k2=k1.square() / 2, k3=torch.exp(-k1) - 1 + k1)


def importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """Weight of every token that another engine sampled: truncated importance sampling.

    The expectation is over the policy in training, the samples are from the engine's version of
    it, so a token counts by the ratio of the two, cut at ``cap`` to bound the variance (Ionides
    2008; Espeholt et al., 1802.01561, section 4.1). 1 everywhere where both agree.

    Args:
        logprobs: ``(B, T)``, of the policy before the first step, 0 on padding
        sampler_logprobs: ``(B, T)``, of the engine, 0 on padding
        cap: largest weight
    """
    return torch.exp(log_ratio(logprobs, sampler_logprobs)).clamp(max=cap)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of every token: ``-kl_coef * kl``, and the score on the last real token.

    InstructGPT (2203.02155), equation 2, with its KL term spread over the tokens as in Ziegler
    et al. (1909.08593), section 2.2.

    Args:
        scores: ``(B,)``
        kl: ``(B, T)``, the k1 estimate
        mask: ``(B, T)``
        kl_coef: weight of the KL penalty

    Returns:
        ``(B, T)``, 0 on padding
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)  # (B, T)
    last = (mask.sum(1) - 1).unsqueeze(1)  # (B, 1)
    return rewards.scatter_add(1, last, scores.unsqueeze(1).to(rewards.dtype))


def masked_moments(
    x: Tensor, mask: Tensor, reduce_sum: Callable[[Tensor], Tensor] = lambda t: t
) -> Moments:
    """Mean and variance over the real tokens of all processes.

    Args:
        x: any shape
        mask: the same shape
        reduce_sum: adds a tensor up over all processes
    """
    real = x[mask].double()  # (N,)
    total, count = reduce_sum(torch.stack((real.sum(), torch.ones_like(real).sum())))
    mean = total / count
    squares = reduce_sum((real - mean).square().sum())
    return Moments(mean=mean, var=squares / count)


def whiten(x: Tensor, mask: Tensor, moments: Moments, *, shift_mean: bool = True) -> Tensor:
    """``x`` scaled to unit variance; its mean becomes 0 with ``shift_mean`` and stays otherwise.

    Advantages lose their mean, rewards keep theirs ("N+ details", 2403.17031, detail 20).

    Args:
        x: ``(B, T)``
        mask: ``(B, T)``
        moments: of the real tokens of all processes
        shift_mean: whether the mean becomes 0

    Returns:
        ``(B, T)``, 0 on padding
    """
    white = (x - moments.mean) * torch.rsqrt(moments.var + 1e-8)
    white = white if shift_mean else white + moments.mean
    return torch.where(mask, white, 0.0).to(x.dtype)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, bootstrap: Tensor, *, gamma: float, lam: float
) -> Advantages:
    """Generalised advantage estimation (1506.02438, equation 16) along each completion.

    Args:
        rewards: ``(B, T)``
        values: ``(B, T)``, of the state before each token
        mask: ``(B, T)``
        bootstrap: ``(B,)``, value of the state after the last real token: that of the value model
            where a completion was cut at the length limit, 0 where it ended by itself
        gamma: discount
        lam: bias (0) against variance (1)

    Returns:
        advantages and returns, ``(B, T)``, 0 on padding
    """
    last = mask.sum(1) - 1  # (B,)
    next_value = torch.zeros_like(bootstrap)  # (B,)
    advantage = torch.zeros_like(bootstrap)  # (B,)
    advantages = torch.zeros_like(rewards)  # (B, T)
    for t in reversed(range(rewards.shape[1])):
        next_value = torch.where(last == t, bootstrap, next_value)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * lam * advantage, 0.0)
        advantages[:, t] = advantage
        next_value = values[:, t]
    return Advantages(advantages, torch.where(mask, advantages + values, 0.0))
