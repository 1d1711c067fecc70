"""PPO from text prompts, in numbered steps, on accelerate.

One rollout:

1. draw prompts, 2. complete them, 3. score the texts, 4. log-probabilities and values,
5. rewards a token, 6. advantages, 7. several epochs of optimizer steps,
8. steer kl_coef, 9. log, evaluate, save.

Glossary of batch sizes: a *batch* is one rollout over all processes; it is cut into
``num_mini_batches`` *mini-batches*, one optimizer step each; a process feeds its share of a
mini-batch to the networks in *micro-batches* of ``per_device_train_batch_size`` rows.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from align import checkpoint, guards
from align.config import PPOStage
from align.errors import DataError, Interrupted
from align.ppo import state, vllm
from align.ppo.accelerator import Group, enable_checkpointing, new_accelerator, new_optimizer
from align.ppo.advantages import (
    gae,
    importance_weights,
    kl_estimates,
    masked_moments,
    token_rewards,
    whiten,
)
from align.ppo.attention import use_float32_attention
from align.ppo.build import reward_lineage
from align.ppo.control import IN_A_ROW, Timer, draw_index, next_kl_coef, no_scores
from align.ppo.generate import Completions, draws
from align.ppo.learner import Batch, Learner, check_steps
from align.ppo.metrics import check_numbers, held_out_metrics, rollout_metrics, sample_rows
from align.ppo.models import Networks, causal_lm, write_policy
from align.ppo.probe import check_model
from align.ppo.rewards import Record, Rewards, RunningScale, Scores, shape_scores
from align.ppo.rollout import (
    Prompt,
    Rollout,
    check_pad,
    demonstrations,
    sample_completions,
    score_rollout,
    tokenize,
)
from align.ppo.sharding import is_sharded, keep_precision
from align.ppo.trunk import shared_layers
from align.ppo.watch import Watch
from align.streams import Streams

EVAL_STREAM = 2**31  # number of the random stream of held-out evaluation


class PPOTrainer:
    """Trains ``networks.policy`` to raise ``reward`` while it stays near the reference."""

    def __init__(
        self,
        config: PPOStage,
        networks: Networks,
        tokenizer: Any,
        reward: Rewards,
        train_records: Sequence[Record],
        eval_records: Sequence[Record],
        *,
        eos_token_ids: list[int],
        ptx_records: Sequence[Record] = (),
        gold: Rewards | None = None,
    ):
        """Prepare models and optimizer; nothing is written yet.

        Args:
            config: of the stage
            networks: policy, value model and reference, see `build_networks`
            tokenizer: the policy's, with a chat template and a PAD of its own
            reward: scores texts
            train_records: prompt-only records
            eval_records: held-out ones, possibly none
            eos_token_ids: every token that ends a completion
            ptx_records: prompt-completion records for ptx_coef
            gold: judges held-out completions beside the reward, and is never optimised
        """
        self.config, self.tokenizer, self.reward, self.gold = config, tokenizer, reward, gold
        self.eos_token_ids = eos_token_ids
        self.output_dir = Path(config.output_dir)
        self.accelerator = new_accelerator(config)
        self.group = Group(self.accelerator)
        self.local_batch = (
            config.per_device_train_batch_size
            * config.gradient_accumulation_steps
            * config.num_mini_batches
        )
        self.batch = self.local_batch * self.group.world
        self.rollouts = -(-config.total_episodes // self.batch)
        self._take_prompts(train_records, eval_records)
        self._take_networks(networks, ptx_records)
        self.server = vllm.connect(config, self.accelerator) if config.vllm_url else None
        self.progress = state.Progress(kl_coef=config.kl_coef)
        self.scale = RunningScale()
        self.within_budget: state.Weights = {}
        self.watch = Watch(self.accelerator, self.output_dir, self.rollouts, asdict(config))
        self.interrupts = guards.Interrupts()

    def _take_prompts(self, train: Sequence[Record], held_out: Sequence[Record]) -> None:
        config = self.config
        longest = config.max_length - config.max_completion_length
        check_pad(self.tokenizer)
        self.prompts = tokenize(train, self.tokenizer, longest)
        self.eval_prompts = tokenize(held_out, self.tokenizer, longest)[: config.eval_prompts]
        self.too_long = len(train) - len(self.prompts)
        if not self.prompts:
            raise DataError(
                f"none of {len(train)} prompts fits into {longest} tokens (max_length minus "
                "max_completion_length); raise max_length or give shorter prompts"
            )

    def _take_networks(self, networks: Networks, ptx_records: Sequence[Record]) -> None:
        config = self.config
        if config.gradient_checkpointing:
            enable_checkpointing(networks)
        sharded, device = is_sharded(self.accelerator), self.accelerator.device
        if not sharded and networks.value_head.weight.device.type != device.type:
            networks.to(device)
        half = config.bf16 or config.dtype == "bfloat16"
        if half and device.type == "cpu":
            lms = (causal_lm(networks.policy), networks.value_backbone, networks.reference)
            use_float32_attention(*lms)
        check_model(networks, config.max_length)
        if sharded:
            keep_precision(self.accelerator)
            networks.prepare_sampling_in_pieces()
        elif networks.value_backbone is None:
            networks.trunk_layers = shared_layers(causal_lm(networks.policy).base_model)
        optimizer = new_optimizer(config, networks)
        self.networks, self.optimizer = self.accelerator.prepare(networks, optimizer)
        self.networks.train()
        steps = self.rollouts * config.num_ppo_epochs * config.num_mini_batches
        ptx = None
        if ptx_records:
            eos = self.eos_token_ids[0]
            ptx = demonstrations(ptx_records, self.tokenizer, config.max_length, eos)
        self.streams = Streams(self.networks)
        self.learner = Learner(config, self.group, self.streams, self.optimizer, steps, ptx)

    # ------------------------------------------------------------ the run

    def train(self, data: Sequence[Mapping[str, Any]] = ()) -> None:
        """Run all rollouts.

        With ``config.resume`` it goes on from the newest complete checkpoint.

        Args:
            data: what lineage.json will say of the data

        Raises:
            ConfigError: the run to resume started from other weights or data.
            Interrupted: after Ctrl-C or SIGTERM, once the run is saved.
            RunError: losses are no numbers several times in a row, or a reward failed.
        """
        with checkpoint.disk_errors(self.output_dir):
            if self.accelerator.is_main_process:
                networks = self.accelerator.unwrap_model(self.networks)
                checkpoint.try_saving(networks.policy, self.tokenizer)
            self.interrupts.install()
            try:
                self._begin(data)
                while self.progress.rollout < self.rollouts and not self.progress.stopped:
                    self._one_rollout()
                check_steps(self.progress)
            finally:
                self.interrupts.restore()
                self.watch.close()
                if self.accelerator.is_main_process:
                    vllm.forget_weights(self.output_dir / vllm.FOLDER)

    def _begin(self, data: Sequence[Mapping[str, Any]]) -> None:
        """From nothing, or from where a checkpoint stands."""

        def begin() -> Path | None:
            if not self.accelerator.is_main_process:
                return None
            inputs = checkpoint.inputs(self.config, data, self.tokenizer)
            return checkpoint.begin_run(self.config, inputs)

        newest = self.group.together(begin)
        (newest,) = broadcast_object_list([newest])
        if newest is not None:
            self._restore(newest)
        self.watch.start(self.progress.rollout, self.progress.lines)
        if self.too_long:
            self.watch.say(f"{self.too_long} prompts are too long for max_length and left out")
        if self.progress.rollout == 0:
            self._evaluate()

    def _one_rollout(self) -> None:
        config, progress = self.config, self.progress
        seconds: dict[str, float] = {}
        began = time.perf_counter()

        # 1. draw prompts
        prompts = self._draw_prompts()

        # 2. complete them
        with Timer(seconds, "generate"):
            completions = self._complete(prompts, progress.rollout)
        self._stop_if_asked()

        # 3. score the texts; 4. log-probabilities and values
        with Timer(seconds, "score"):
            rollout = self._score(prompts, completions)

        # 5. rewards a token; 6. advantages
        batch = self._advantages(rollout)
        metrics = rollout_metrics(batch, self.group)
        self._warn_without_scores(float(metrics["truncation_rate"] or 0.0))
        # k1 steers: one improbable token can make k3 (the metric) ten times as large for a rollout.
        kl, used = float(metrics["kl_k1"] or 0.0), progress.kl_coef
        if self._over_budget(kl):
            return

        # 7. optimizer steps
        with Timer(seconds, "learn"):
            learned = self.learner.learn(batch, progress)

        # 8. steer kl_coef
        if config.kl_target is not None:
            progress.kl_coef = next_kl_coef(
                used, kl, config.kl_target, self.batch, config.kl_horizon
            )

        # 9. log, evaluate, save
        seconds["all"] = time.perf_counter() - began
        self._end_of_rollout({"kl_coef": used, **metrics, **learned}, seconds)

    def _end_of_rollout(self, found: dict[str, Any], seconds: dict[str, float]) -> None:
        """Count, log, and where it is time for it evaluate and save.

        Args:
            found: the numbers of the rollout and of its optimizer steps
            seconds: phase -> time spent, and ``all``
        """
        config, progress, tokens = self.config, self.progress, int(found["completion_tokens"] or 0)
        progress.rollout += 1
        progress.episodes += self.batch
        progress.tokens += tokens
        counts = {
            "step": progress.step,
            "rollout": progress.rollout,
            "episodes": progress.episodes,
            "skipped_steps": progress.skipped,
            "tokens_per_second": tokens / seconds["all"],
            "episodes_per_second": self.batch / seconds["all"],
        }
        last = progress.rollout == self.rollouts
        if last or progress.rollout % config.logging_steps == 0:
            phases = {f"seconds/{phase}": spent for phase, spent in seconds.items()}
            self.watch.log({**counts, **found, **phases}, progress.step)
        self.watch.advance(float(found["score"] or 0.0), float(found["kl_k1"] or 0.0))
        if last:  # the result is the average where one is kept
            networks = self.accelerator.unwrap_model(self.networks)
            state.load_weights(networks, self.learner.average)
        if last or (config.eval_steps and progress.rollout % config.eval_steps == 0):
            self._evaluate()
        if last or progress.rollout % config.save_steps == 0:
            self._save()
        self._stop_if_asked()

    # ------------------------------------------------------------ steps

    def _draw_prompts(self) -> list[Prompt]:
        """This process's share of the rollout's prompts; a pass over all comes before a repeat."""
        first = self.progress.rollout * self.batch + self.group.rank * self.local_batch
        return [
            self.prompts[draw_index(self.config.seed, k, len(self.prompts))]
            for k in range(first, first + self.local_batch)
        ]

    def _complete(self, prompts: Sequence[Prompt], stream: int) -> Completions:
        config, first = self.config, self.group.rank * len(prompts)
        if self.server is not None:
            policy = self.accelerator.unwrap_model(self.networks).policy
            ids = [prompt.ids for prompt in prompts]
            return vllm.sample(
                self.server, config, self.group, policy, self.tokenizer, ids, self.eos_token_ids,
                stream,
            )  # fmt: skip
        uniforms = draws(
            config.seed, stream, len(prompts) * self.group.world, config.max_completion_length
        )
        with self.accelerator.autocast(), self.streams.one_at_a_time():
            return sample_completions(
                self.accelerator.unwrap_model(self.networks),
                prompts,
                uniforms[first : first + len(prompts)],
                rows_at_once=config.per_device_rollout_batch_size,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self.tokenizer.pad_token_id,
                temperature=config.temperature,
                device=self.accelerator.device,
            )

    def _score(self, prompts: Sequence[Prompt], completions: Completions) -> Rollout:
        rollout = score_rollout(
            self.streams,
            prompts,
            completions,
            self._together(self.reward),
            self.tokenizer,
            temperature=self.config.temperature,
            micro_batch=self.config.per_device_train_batch_size,
            trunk_layers=self.accelerator.unwrap_model(self.networks).trunk_layers,
        )
        self.group.together(lambda: check_numbers(rollout))
        return rollout

    def _together(self, reward: Rewards) -> Callable[..., Scores]:
        """Rewards whose failure on one process stops all of them with its message."""
        return lambda *texts: self.group.together(lambda: reward(*texts))

    def _advantages(self, rollout: Rollout) -> Batch:
        config, mask = self.config, rollout.mask
        if config.normalize_scores:
            everyone = torch.ones_like(rollout.scores, dtype=torch.bool)
            moments = masked_moments(rollout.scores, everyone, self.group.sum)
            mean, var = moments.mean.item(), moments.var.item()
            self.scale.update(self.batch, mean, var * self.batch)
        scores = shape_scores(
            rollout.scores,
            rollout.ended,
            mask.sum(1),
            scale=self.scale if config.normalize_scores else None,
            clip=config.score_clip,
            score_truncated=config.truncated == "score",
            missing_eos_penalty=config.missing_eos_penalty,
            length_penalty=config.length_penalty,
        )
        over = rollout.ended | (config.truncated == "score")
        bootstrap = torch.where(over, 0.0, rollout.final_values)
        kl = kl_estimates(rollout.logprobs, rollout.ref_logprobs).k1
        rewards = token_rewards(scores, kl, mask, self.progress.kl_coef)
        if config.whiten_rewards:
            rewards = whiten(
                rewards, mask, masked_moments(rewards, mask, self.group.sum), shift_mean=False
            )
        advantages, returns = gae(
            rewards, rollout.values, mask, bootstrap, gamma=config.gamma, lam=config.lam
        )
        advantages = whiten(advantages, mask, masked_moments(advantages, mask, self.group.sum))
        if rollout.sampler_logprobs is not None:  # a weight on a token's loss, clipped or not
            advantages = advantages * importance_weights(
                rollout.logprobs, rollout.sampler_logprobs, config.importance_cap
            )
        return Batch(rollout, advantages, returns, rewards)

    def _warn_without_scores(self, cut: float) -> None:
        """Say it once when, rollout after rollout, nearly no completion gets a score."""
        progress, words = self.progress, no_scores(self.config, cut)
        progress.without_score = progress.without_score + 1 if words else 0
        if words and progress.without_score == IN_A_ROW and not progress.warnings:
            progress.warnings.append(words)
            self.watch.say(f"warning: {words}")

    def _over_budget(self, kl: float) -> bool:
        """Stop a run whose KL exceeds its budget, with the last policy that was seen within it."""
        if self.config.kl_budget is None:
            return False
        networks = self.accelerator.unwrap_model(self.networks)
        if kl <= self.config.kl_budget:
            self.within_budget = state.policy_weights(networks)
            return False
        state.load_weights(networks, self.within_budget)
        self.progress.stopped = f"KL {kl:.3f} is over kl_budget {self.config.kl_budget:g}"
        self.watch.say(
            f"stopped after {self.progress.rollout} rollouts: {self.progress.stopped}; "
            "the policy is the last one that was within it"
        )
        self._evaluate()
        self._save()
        return True

    def _evaluate(self) -> None:
        """Mean score, KL and length on held-out prompts, with the same random numbers each time."""
        prompts, group = self.eval_prompts, self.group
        if not prompts:
            return
        share = -(-len(prompts) // group.world)  # every process takes part in every forward pass
        own = [prompts[(group.rank * share + i) % len(prompts)] for i in range(share)]
        rollout = self._score(own, self._complete(own, EVAL_STREAM))
        gold = None
        if self.gold is not None:
            records = [prompt.record for prompt in own]
            ended = rollout.ended.tolist()
            gold = self._together(self.gold)(records, rollout.completions, ended).total
        rows = group.rows(sample_rows(rollout, gold))
        found = held_out_metrics(rows[: len(prompts)])
        place = {"step": self.progress.step, "rollout": self.progress.rollout}
        self.watch.log({**place, **found}, self.progress.step)
        self.watch.samples(self.progress.rollout, rows[: len(prompts)])
        self.progress.held_out = found

    # ------------------------------------------------------------ state

    def _run_facts(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        c = self.config
        return {
            "seed": c.seed,
            "processes": self.group.world,
            "batch": self.batch,
            "total_episodes": c.total_episodes,
            "prompts": len(self.prompts),
        }

    def _save(self) -> None:
        """Write a checkpoint of this moment, between two rollouts."""
        self.progress.scale = dict(vars(self.scale))
        self.progress.lines = dict(self.watch.lines)
        state.save(
            self.output_dir,
            self.progress,
            self.accelerator.unwrap_model(self.networks),
            self.optimizer,
            {k: w for k, w in self._kept().items() if w},
            self._run_facts(),
        )
        self.accelerator.wait_for_everyone()

    def _kept(self) -> dict[str, state.Weights]:
        return {"within_budget": self.within_budget, "average": self.learner.average}

    def _restore(self, folder: Path) -> None:
        networks = self.accelerator.unwrap_model(self.networks)
        found = state.restore(folder, networks, self.optimizer, self._run_facts())
        self.progress = found.progress
        self.within_budget = found.kept.get("within_budget", {})
        self.learner.average = found.kept.get("average", self.learner.average)
        self.scale = state.scale_of(self.progress)

    def _stop_if_asked(self) -> None:
        """Save and leave after Ctrl-C or SIGTERM. Called where weights are those of a rollout's
        start or end; a rollout that was begun is sampled again later, the same.
        """
        asked = torch.tensor(float(self.interrupts.asked), device=self.accelerator.device)
        if self.group.sum(asked).item() > 0:
            self._save()
            raise Interrupted(guards.saved_line(self.progress.step))

    def finish(self, write: Callable[[Path], Any]) -> None:
        """Put the policy into output_dir; then intermediate checkpoints go.

        A run that is killed here resumes from its last checkpoint.

        Args:
            write: adds lineage.json to the folder, on the main process
        """
        networks, out = self.accelerator.unwrap_model(self.networks), self.output_dir
        main = self.accelerator.is_main_process
        with networks.whole_policy("cpu" if main else "meta") as policy:
            if main:
                with checkpoint.disk_errors(out), checkpoint.finish_run(out) as folder:
                    write_policy(folder, policy, self.tokenizer)
                    write(folder)
        self.accelerator.wait_for_everyone()

    def evidence(self) -> dict[str, Any]:
        """What lineage.json says beside the usual: held-out numbers, why it stopped, the reward."""
        progress = self.progress
        return {
            "held_out": progress.held_out,
            "stopped": progress.stopped or None,
            "warnings": progress.warnings,
            **reward_lineage(self.config),
        }
