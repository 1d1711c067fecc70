"""Numbers of a rollout for the log: averages over real tokens or completions of all processes."""

import statistics
from typing import Any

import torch

from align.errors import RunError
from align.ppo.accelerator import Group
from align.ppo.advantages import kl_estimates, log_ratio, masked_moments
from align.ppo.learner import Batch
from align.ppo.rollout import Rollout

Metrics = dict[str, float | int | None]


def kl_per_completion(rollout: Rollout) -> torch.Tensor:
    """KL from the reference in nats a completion, ``(B,)``: the sum of k3 over its tokens."""
    return kl_estimates(rollout.logprobs, rollout.ref_logprobs).k3.sum(1)


def rollout_metrics(batch: Batch, group: Group) -> Metrics:
    """What a rollout looks like before the optimizer steps on it."""
    rollout, mask = batch.rollout, batch.rollout.mask
    tokens = group.sum(mask.sum().double()).item()
    score = group.mean(rollout.scores)
    spread = group.mean((rollout.scores - score).square())
    several = rollout.parts if len(rollout.parts) > 1 else {}
    error = masked_moments(batch.returns - rollout.values, mask, group.sum).var
    returns = masked_moments(batch.returns, mask, group.sum).var
    return {
        "score": score,
        "score_std": spread**0.5,
        **{f"score/{name}": group.mean(scores) for name, scores in several.items()},
        "kl": group.mean(kl_per_completion(rollout)),
        "kl_k1": group.mean(kl_estimates(rollout.logprobs, rollout.ref_logprobs).k1.sum(1)),
        "reward": group.mean(batch.rewards.sum(1)),
        "entropy": group.sum(rollout.entropy.double().sum()).item() / tokens,
        "explained_variance": (1 - error / returns.clamp(min=1e-12)).item(),
        "completion_length": tokens / (len(mask) * group.world),
        "truncation_rate": group.mean((~rollout.ended).double()),
        "completion_tokens": tokens,
        **sampler_metrics(rollout, group, tokens),
    }


def sampler_metrics(rollout: Rollout, group: Group, tokens: float) -> Metrics:
    """How far the engine that sampled is from the policy in training; nothing where it is it."""
    if rollout.sampler_logprobs is None:
        return {}
    ratio = torch.exp(log_ratio(rollout.logprobs, rollout.sampler_logprobs))  # (B, T)
    kl = kl_estimates(rollout.sampler_logprobs, rollout.logprobs).k3
    return {
        "importance_mean": group.sum(ratio[rollout.mask].double().sum()).item() / tokens,
        "importance_max": group.max(ratio[rollout.mask].max()),
        "sampler_kl": group.sum(kl.double().sum()).item() / tokens,
    }


def check_numbers(rollout: Rollout) -> None:
    """Stop before a policy that is none any more is trained, judged or saved.

    Raises:
        RunError: log-probabilities of its tokens are NaN or infinite.
    """
    bad = int((~rollout.logprobs.isfinite()).any(1).sum())
    if bad:
        raise RunError(
            f"the policy gives probabilities that are no numbers to {bad} of {len(rollout.mask)} "
            "completions: its weights are NaN or so large that it overflows; lower learning_rate, "
            "use bfloat16 instead of float16, or start from another model_name_or_path"
        )


def sample_rows(rollout: Rollout, gold: torch.Tensor | None = None) -> list[dict[str, Any]]:
    """One row a completion, for samples.jsonl and the table on stderr.

    ``gold``: ``(B,)``, scores of a second scorer.
    """
    columns = {
        "completion": rollout.completions,
        "score": rollout.scores.tolist(),
        **({} if gold is None else {"gold_score": gold.tolist()}),
        "kl": kl_per_completion(rollout).tolist(),
        "tokens": rollout.mask.sum(1).tolist(),
        "ended": rollout.ended.tolist(),
    }
    return [
        {"prompt": prompt.record["prompt"], **{name: values[i] for name, values in columns.items()}}
        for i, prompt in enumerate(rollout.prompts)
    ]


def held_out_metrics(rows: list[dict[str, Any]]) -> Metrics:
    """Means over held-out completions."""
    n = len(rows)
    gold = [row["gold_score"] for row in rows if "gold_score" in row]
    judged: Metrics = {}
    if gold:
        judged = {
            "eval/gold_score": sum(gold) / n,
            "eval/gold_score_std": statistics.stdev(gold) if n > 1 else None,
        }
    return {
        "eval/score": sum(row["score"] for row in rows) / n,
        "eval/score_std": statistics.stdev(r["score"] for r in rows) if n > 1 else None,
        **judged,
        "eval/kl": sum(row["kl"] for row in rows) / n,
        "eval/completion_length": sum(row["tokens"] for row in rows) / n,
        "eval/truncation_rate": sum(not row["ended"] for row in rows) / n,
        "eval/n": n,
    }
