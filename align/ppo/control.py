"""What steers a run from outside the networks: data order, schedules, the KL coefficient."""

import hashlib
import math
import time
from contextlib import AbstractContextManager
from functools import lru_cache

import torch

from align.config import PPOStage


def stream_seed(*parts: int) -> int:
    """A seed for one purpose, independent of those for others: 63 bits of a hash."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_index(seed: int, k: int, n: int) -> int:
    """Which of ``n`` prompts is the ``k``-th of a run: a new permutation for every pass."""
    return permutation(seed, k // n, n)[k % n]


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> list[int]:
    """The order of ``n`` prompts in one pass over them."""
    generator = torch.Generator().manual_seed(stream_seed(seed, epoch))
    return list(torch.randperm(n, generator=generator).tolist())


def lr_factor(config: PPOStage, step: int, total: int) -> float:
    """Share of the peak learning rate at an optimizer step, counted from 0.

    Args:
        config: lr_scheduler_type and warmup_steps
        step: as planned; steps that an early stop saved count
        total: planned steps of the run
    """
    warmup = config.warmup_steps
    warmup = warmup * total if 0 < warmup < 1 else warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    rest = (step - warmup) / max(total - warmup, 1)
    if config.lr_scheduler_type == "linear":
        return max(0.0, 1 - rest)
    if config.lr_scheduler_type == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))
    return 1.0


def next_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """Proportional control in log space (1909.08593, section 2.2).

    Args:
        kl_coef: so far
        kl: measured, nats a completion
        target: wanted, nats a completion
        episodes: completions since the last change
        horizon: completions over which the full error would be answered
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)


CUT, IN_A_ROW = 0.95, 3  # share of completions without a score, and rollouts, that call for a word


def no_scores(config: PPOStage, cut: float) -> str:
    """What to say when a share of completions was cut and so got no score; empty: nothing."""
    if config.truncated != "bootstrap" or cut < CUT:
        return ""
    return (
        f"{cut:.0%} of the completions of {IN_A_ROW} rollouts in a row were cut at "
        f"{config.max_completion_length} tokens, and with truncated: bootstrap a cut completion "
        "gets no score, so there is next to nothing to learn from; raise max_completion_length, "
        "set truncated: score, or train the SFT model to end its answers"
    )


class Timer(AbstractContextManager["Timer"]):
    """Adds the wall time of a block to ``seconds[phase]``."""

    def __init__(self, seconds: dict[str, float], phase: str):
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> "Timer":
        self.began = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent = time.perf_counter() - self.began
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + spent
