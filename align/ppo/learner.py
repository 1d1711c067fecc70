"""The optimizer steps on one rollout.

1. A pass over the rollout is a new random order, cut into mini-batches.
2. A mini-batch is cut into micro-batches of rows of like length.
3. All of them go through the value model and then through the policy, each forward pass with its
   own backward pass, a core each where there are several (see `streams`). Losses are sums over
   tokens, divided by the tokens of the mini-batch on all processes.
4. Gradients are exchanged after the last micro-batch and scaled down to max_grad_norm.
5. A step whose loss or gradient is no finite number is left out and counted.
"""

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.config import PPOStage
from align.errors import RunError
from align.ppo.accelerator import Group
from align.ppo.control import draw_index, lr_factor, stream_seed
from align.ppo.loss import policy_loss, value_loss
from align.ppo.models import Sequences
from align.ppo.rollout import Rollout, micro_batches
from align.ppo.sharding import full, is_sharded, local
from align.ppo.state import Progress, Weights, policy_weights, trained
from align.streams import Streams

MAX_SKIPPED = 5  # steps in a row with a loss or gradient that is no number
Sums = dict[str, Tensor]


class Batch(NamedTuple):
    """A rollout with what its optimizer steps need, per token ``(B, T)``."""

    rollout: Rollout
    advantages: Tensor
    returns: Tensor
    rewards: Tensor


class Part(NamedTuple):
    """What a micro-batch gives: its summed loss, and its statistics."""

    loss: Tensor
    found: Sums


def check_steps(progress: Progress) -> None:
    """At the end of a run, which may be shorter than `MAX_SKIPPED` steps.

    Raises:
        RunError: not one step was taken.
    """
    if progress.step and progress.skipped == progress.step:
        raise RunError(
            f"loss or gradient was no finite number in all {progress.step} optimizer steps, so "
            "nothing was learnt; lower learning_rate, or look at the rewards"
        )


class Learner:
    """Policy and value model under one optimizer."""

    def __init__(
        self,
        config: PPOStage,
        group: Group,
        streams: Streams,
        optimizer: Any,
        planned_steps: int,
        ptx: Sequences | None = None,
    ):
        self.config, self.group, self.ptx = config, group, ptx
        self.accelerator = group.accelerator
        self.streams, self.optimizer = streams, optimizer
        self.networks = streams.networks[0]
        self.planned_steps = planned_steps
        self.average: Weights = {}  # of the policy's weights
        if config.ema_decay is not None:
            self.average = policy_weights(self.accelerator.unwrap_model(self.networks))

    def learn(self, batch: Batch, progress: Progress) -> dict[str, float]:
        """``num_ppo_epochs`` passes over the rollout; returns what is worth logging of them.

        Raises:
            RunError: losses or gradients were no numbers in `MAX_SKIPPED` steps in a row.
        """
        config, mask = self.config, batch.rollout.mask
        sums: Sums = defaultdict(lambda: torch.zeros((), device=mask.device))
        planned = progress.rollout * config.num_ppo_epochs * config.num_mini_batches
        for epoch in range(config.num_ppo_epochs):
            # 1. a new order
            seed = stream_seed(config.seed, progress.rollout, epoch, self.group.rank)
            order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
            minis = order.to(mask.device).tensor_split(config.num_mini_batches)
            tokens = self.group.sum(torch.stack([mask[rows].sum() for rows in minis]).double())
            before = sums["approx_kl"].clone()
            for rows, count in zip(minis, tokens.tolist(), strict=True):
                self._schedule(planned)
                self._step(batch, rows, count, progress, sums)
                planned += 1
            moved = self.group.sum(sums["approx_kl"] - before) / tokens.sum()
            if config.approx_kl_limit is not None and moved.item() > config.approx_kl_limit:
                break
        return self._means(sums)

    def _schedule(self, planned: int) -> None:
        factor = lr_factor(self.config, planned, self.planned_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def _step(
        self, batch: Batch, rows: Tensor, tokens: float, progress: Progress, sums: Sums
    ) -> None:
        """One optimizer step on ``rows`` of this process; ``tokens`` are those of all."""
        config = self.config
        warming_up = progress.rollout < config.critic_warmup_rollouts
        finite = torch.ones((), device=rows.device)
        if self.ptx is not None and not warming_up:
            finite = self._ptx(self.ptx, len(rows), progress, sums)
        # 2. micro-batches
        lengths = batch.rollout.sequences.lengths[rows]
        micro = micro_batches(self.streams, lengths, config.per_device_train_batch_size)

        # 3. value model, then policy
        def gradient(networks: Any, job: tuple[str, Tensor]) -> Sums:
            which, part = job
            with self._exchange(part is micro[-1]):
                loss, found = self._loss(which, networks, batch, rows[part])
                # Gradients of all processes are averaged, so the sum is scaled up first.
                self.accelerator.backward(loss * (self.group.world / tokens))
            return {**found, "finite": loss.detach().isfinite()}

        nets = ("value",) if warming_up else ("value", "policy")
        for found in self.streams.map(gradient, [(n, part) for n in nets for part in micro]):
            finite = finite * found.pop("finite")
            add(sums, found)
        self.streams.add_gradients()
        # 4. clip
        parameters = self.networks.parameters()
        norm = full(self.accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
        # 5. step, or leave it out
        if self.group.sum(finite).item() == self.group.world and bool(torch.isfinite(norm)):
            self.optimizer.step()
            progress.skipped_in_a_row = 0
            sums["grad_norm"] += norm
            sums["steps"] += 1
            self._update_average()
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        self.optimizer.zero_grad()
        progress.step += 1
        if progress.skipped_in_a_row >= MAX_SKIPPED:
            raise RunError(
                f"loss or gradient was no finite number in {MAX_SKIPPED} optimizer steps in a row "
                f"(last: step {progress.step}); lower learning_rate, or look at the rewards"
            )

    def _exchange(self, final: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients after the final micro-batch only.

        Sharded, they do after every one: whole gradients would take the memory that was saved.
        """
        if self.group.world == 1 or final or is_sharded(self.accelerator):
            return nullcontext()
        return self.accelerator.no_sync(self.networks)

    def _loss(self, which: str, networks: Any, batch: Batch, rows: Tensor) -> Part:
        """Loss of one network on a micro-batch."""
        loss = self._value_loss if which == "value" else self._policy_loss
        return loss(networks, batch, rows)

    def _value_loss(self, networks: Any, batch: Batch, rows: Tensor) -> Part:
        rollout, mask = batch.rollout, batch.rollout.mask[rows]
        values = networks("value", rollout.sequences.rows(rows))  # (N,)
        out = value_loss(
            values,
            rollout.values[rows][mask],
            batch.returns[rows][mask],
            cliprange_value=self.config.cliprange_value,
        )
        found = dict(
            value_loss=out.loss.detach(), value_clipped=out.clipped, value_tokens=mask.sum()
        )
        return Part(self.config.vf_coef * out.loss, found)

    def _policy_loss(self, networks: Any, batch: Batch, rows: Tensor) -> Part:
        config, rollout, mask = self.config, batch.rollout, batch.rollout.mask[rows]
        stats = networks(
            "policy",
            rollout.sequences.rows(rows),
            temperature=config.temperature,
            with_entropy=config.entropy_coef != 0,
        )
        out = policy_loss(
            stats.logprobs,
            rollout.logprobs[rows][mask],
            batch.advantages[rows][mask],
            cliprange=config.cliprange,
            dual_clip=config.dual_clip,
        )
        bonus = 0.0 if stats.entropy is None else config.entropy_coef * stats.entropy.sum()
        found = dict(
            policy_loss=out.loss.detach(),
            ratio=out.ratio_sum,
            ratio_max=out.ratio_max,
            clipped=out.clipped,
            approx_kl=out.approx_kl,
            policy_tokens=mask.sum(),
        )
        return Part(out.loss - bonus, found)

    def _ptx(self, ptx: Sequences, n: int, progress: Progress, sums: Sums) -> Tensor:
        """Add the gradient of PPO-ptx (2203.02155, equation 2): ``ptx_coef`` times the mean loss a
        token on as many demonstrations as the mini-batch has completions. Returns 1.0, or 0.0
        where the loss is no finite number.
        """
        config, group = self.config, self.group
        device = self.accelerator.device
        first = (progress.step * group.world + group.rank) * n
        chosen = torch.tensor(
            [draw_index(config.seed + 1, k, len(ptx.ids)) for k in range(first, first + n)]
        )
        tokens = group.sum(ptx.completion_lengths[chosen].sum().double().to(device)).item()
        lengths = ptx.lengths[chosen]

        def gradient(networks: Any, part: Tensor) -> Tensor:
            rows = ptx.rows(chosen[part]).to(device)
            with self._exchange(False):  # comes with the policy's gradient
                loss = -networks("policy", rows).logprobs.sum()
                self.accelerator.backward(loss * (config.ptx_coef * group.world / tokens))
            return loss.detach()

        micro = micro_batches(self.streams, lengths, config.per_device_train_batch_size)
        added = torch.stack(self.streams.map(gradient, micro)).sum()
        sums["ptx_loss"] += group.sum(added) / tokens
        return added.isfinite().float()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average of the policy's weights."""
        parameters = trained(self.accelerator.unwrap_model(self.networks))
        for name, mean in self.average.items():
            mean.lerp_(local(parameters[name]).to(mean.device), 1 - (self.config.ema_decay or 0.0))

    def _means(self, sums: Sums) -> dict[str, float]:
        """Means over the tokens of all processes, the norm over the steps that were taken."""
        names = [
            "policy_loss", "value_loss", "ratio", "clipped", "value_clipped", "approx_kl",
            "policy_tokens", "value_tokens",
        ]  # fmt: skip
        added = self.group.sum(torch.stack([sums[name].double() for name in names]))
        total = dict(zip(names, added.tolist(), strict=True))
        policy, value = max(total["policy_tokens"], 1), max(total["value_tokens"], 1)
        return {
            "loss/policy": total["policy_loss"] / policy,
            "loss/value": total["value_loss"] / value,
            "ratio_mean": total["ratio"] / policy,
            "ratio_max": self.group.max(sums["ratio_max"]),
            "clipfrac": total["clipped"] / policy,
            "clipfrac_value": total["value_clipped"] / value,
            "approx_kl": total["approx_kl"] / policy,
            "grad_norm": (sums["grad_norm"] / sums["steps"]).item(),
            **({"loss/ptx": (sums["ptx_loss"] / sums["steps"]).item()} if self.ptx else {}),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }


def add(sums: Sums, found: Sums) -> None:
    """Add the statistics of a micro-batch to those of the rollout."""
    for name, value in found.items():
        together = torch.maximum if name == "ratio_max" else torch.add
        sums[name] = together(sums[name], value)
