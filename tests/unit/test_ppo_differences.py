"""What PPO here does otherwise than TRL 1.12.0 on purpose, a test for each; where its proofs are.

Numbers of TRL are those that its own code gave (see test_ppo_parity.py). `file::test` without a
file is in this one.

Tokens and prompts
  TRL takes PAD = EOS, and then its masks are wrong
      test_pad_that_is_eos_is_an_error_that_says_how_to_add_one
      test_checkpoint_load::test_a_new_pad_changes_nothing_else
  TRL knows one stop token
      test_several_stop_tokens_end_a_completion_even_one_that_is_pad
      test_ppo_generate::test_rows_end_at_different_times_and_are_masked_after_their_stop_token
  TRL wants token ids in its data, and one tokenizer for policy and reward model
      test_prompts_are_texts_and_the_reward_model_reads_with_its_own_tokenizer
  TRL pads prompts on the left in training too; here nothing depends on padding
      test_ppo_parity::test_numbers_equal_those_of_trl
      test_ppo_networks::test_the_amount_of_padding_changes_nothing
      test_ppo_networks::test_rows_of_a_micro_batch_are_trimmed_and_give_the_same
      test_ppo_generate::test_padding_neighbours_and_order_change_nothing

Rollout
  TRL stacks the logits of a whole rollout
      test_no_tensor_of_a_rollout_has_a_logit_for_every_token
      test_ppo_networks::test_all_logits_never_exist_at_once
  TRL takes old log-probabilities from the sampler; here the training model recomputes them
      test_ppo_trainer::test_first_pass_has_ratio_1_and_no_kl

Rewards and advantages
  TRL puts the score on the first PAD
      test_score_is_on_the_last_real_token_and_trls_on_the_first_pad
      test_ppo_math::test_score_sits_on_the_last_real_token
  TRL continues a completion that ended with the value of the state after its EOS
      test_an_ended_completion_has_no_next_value_and_trls_has_that_after_eos
  TRL has no notion of a completion that was cut
      test_a_cut_completion_is_worth_the_value_of_its_last_state
      test_ppo_math::test_a_truncated_completion_is_bootstrapped_and_a_terminated_one_is_not
  TRL divides variances by n - 1
      test_variances_are_divided_by_n
      test_ppo_math::test_whitened_advantages_have_mean_0_and_variance_1_over_real_tokens
  TRL whitens each process by itself
      test_ppo_math::test_moments_are_those_of_all_processes
  TRL uses one estimator for reward and metric, and clamps nothing
      test_k1_is_in_the_reward_and_k3_in_the_metric_both_clamped
      test_ppo_math::test_log_ratios_are_clamped_so_that_nothing_overflows
  TRL neither clips nor normalises scores
      test_scores_are_normalised_and_clipped_before_kl_is_added
      test_ppo_math::test_scores_are_clipped_before_penalties_and_a_cut_completion_keeps_only_those

Loss and optimisation
  TRL averages micro-batch means
      test_losses_do_not_depend_on_micro_batches_and_trls_do
      test_ppo_trainer::test_gradients_do_not_depend_on_how_a_mini_batch_is_cut
  TRL trains the value of the state after EOS
      test_the_value_after_eos_is_not_trained_and_trls_is
  TRL's accumulation runs across mini-batches
      test_every_mini_batch_is_an_optimizer_step_and_trls_are_merged
  TRL steps after every micro-batch of the last batch of a pass over the data
      test_the_last_batch_of_the_data_is_one_step_and_trls_several
  TRL ignores max_grad_norm
      test_max_grad_norm_is_obeyed_and_trl_ignores_it
  TRL leaves Adam's eps at 1e-8
      test_eps_of_adam_is_1e_5
  TRL's ratio counts padding
      test_the_mean_ratio_leaves_padding_out_and_trls_does_not
  TRL's value head has no offset
      test_recipes_ppo::test_the_value_model_starts_as_the_reward_model

Proofs
  1 ratio 1, nothing clipped, no KL   test_ppo_trainer::test_first_pass_has_ratio_1_and_no_kl
  2 padding   test_ppo_networks::test_the_amount_of_padding_changes_nothing
      test_ppo_generate::test_padding_neighbours_and_order_change_nothing
      test_ppo_math::test_padding_changes_no_advantage
      test_a_rollout_does_not_depend_on_micro_batches_or_neighbours
  3 micro-batches, processes
      test_ppo_trainer::test_gradients_do_not_depend_on_how_a_mini_batch_is_cut
      test_ppo_networks::test_two_processes_with_8_rows_have_the_gradient_of_one_with_16
  4 scores   test_recipes_reward::test_scores_do_not_depend_on_company_or_order
      test_recipes_reward::test_eos_is_shown_only_where_the_completion_ended
  5 tensor math   test_ppo_math::test_gae_equals_its_definition
      test_ppo_math::test_policy_loss_equals_its_definition
      test_ppo_math::test_kl_estimates_average_to_the_kl
      test_kl_estimates_equal_their_definition
  6 kill -9   test_recipes_ppo::test_killed_at_any_moment_and_resumed_gives_the_same_weights
      test_ppo_trainer::test_resumed_equals_uninterrupted_bit_for_bit
      test_ppo_trainer::test_a_run_that_is_resumed_and_then_exceeds_its_budget_has_the_policy_within_it
  7 it learns   test_ppo_trainer::test_score_rises_within_the_kl_budget
  8 TRL   test_ppo_parity::test_numbers_equal_those_of_trl
  architectures
      test_ppo_models::test_the_first_pass_has_ratio_1_and_no_kl_whatever_the_architecture
      test_ppo_models::test_a_model_that_padding_would_change_is_refused

Traps of the libraries, each seen to fail where the trap is sprung
  adapters and gradient checkpointing
      test_recomputed_activations_give_both_adapters_the_same_gradients
      test_both_forward_passes_before_one_backward_pass_would_be_wrong
      test_ppo_networks::test_each_adapter_gets_the_gradient_that_it_gets_alone
      test_ppo_trainer::test_gradient_checkpointing_gives_the_same_weights
  loss scaling over processes
      test_ppo_networks::test_two_processes_with_8_rows_have_the_gradient_of_one_with_16
  packing leaks
      test_training::test_packed_records_would_read_each_other_so_packing_needs_a_kernel_that_parts_them
      test_preflight::test_bad_input
  saves that are not atomic
      test_checkpoint_save::test_a_kill_while_a_checkpoint_is_replaced_leaves_the_old_or_the_new_one
      test_checkpoint_save::test_a_file_of_torch_that_a_full_disk_cut_short_is_no_checkpoint
      test_ppo_faults::test_a_full_disk_at_a_checkpoint_leaves_the_one_before
  samplers   test_training::test_every_row_once_and_only_arguments_count
      test_ppo_trainer::test_resumed_equals_uninterrupted_bit_for_bit
"""

import math
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ppo_cases
import ppo_tiny
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from ppo_cases import CASES, golden, real_mask
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from align.checkpoint import lora_config
from align.errors import CheckpointError
from align.ppo import advantages as adv
from align.ppo import generate, loss, metrics, models
from align.ppo.accelerator import enable_checkpointing
from align.ppo.adapters import add_adapters
from align.ppo.build import assemble
from align.ppo.rollout import tokenize
from align.scoring import RewardScorer


@cache
def ours(name: str, **options: Any) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        return ppo_cases.ours(CASES[name], Path(folder), **options)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def last(case: ppo_cases.Case) -> Tensor:
    """Column of the last real token, (B,)."""
    return real_mask(case).sum(1) - 1


def test_every_test_that_is_named_above_exists():
    folders = {"test_recipes_": "recipes/test_", "test_": "unit/test_"}
    named = re.findall(r"(?:(test_\w+)::)?(test_\w+)", (__doc__ or "").split("\n\n", 2)[2])
    assert len(named) > 40
    for file, test in named:
        prefix = next(p for p in folders if (file or "test_").startswith(p))
        path = (
            folders[prefix] + file.removeprefix(prefix) if file else "unit/" + Path(__file__).stem
        )
        text = (Path(__file__).parents[1] / f"{path}.py").read_text()
        assert f"\ndef {test}(" in text, f"{path}.py has no {test}"


# ---------------------------------------------------------------- tokens and prompts


@pytest.mark.parametrize("pad", ["<eos>", None])
def test_pad_that_is_eos_is_an_error_that_says_how_to_add_one(tmp_path, monkeypatch, pad):
    made = ppo_tiny.tokenizer()
    made.pad_token = pad
    monkeypatch.setattr(ppo_tiny, "tokenizer", lambda: made)
    with pytest.raises(CheckpointError) as error:
        ppo_tiny.trainer(ppo_tiny.config(tmp_path))
    assert f"PAD is {pad!r} and its EOS '<eos>': PPO needs a PAD of its own" in str(error.value)
    assert "add_special_tokens({'pad_token': '<pad>'})" in str(error.value)


def test_several_stop_tokens_end_a_completion_even_one_that_is_pad(tmp_path):
    """Masks come from lengths, never from comparing with PAD: some models stop with their PAD."""
    stops = [1, 0, 7]  # <eos>, <pad>, "e"
    made = ppo_tiny.trainer(
        ppo_tiny.config(tmp_path, max_completion_length=40), eos_token_ids=stops
    )
    made.networks.policy.lm_head.weight.data /= 8  # near uniform: all of them come
    completions = made._complete(made.prompts * 8, 0)
    rollout = made._score(made.prompts * 8, completions)
    ends = {}
    for ids, mask, ended, text in zip(
        completions.ids, completions.mask, completions.ended, rollout.completions, strict=True
    ):
        own = ids[mask].tolist()
        assert not set(own[:-1]) & set(stops)
        if ended:
            ends[own[-1]] = len(own)
            assert "e" not in text and len(text) <= len(own) - 1
    assert ends.keys() == set(stops)
    assert torch.equal(rollout.mask.sum(1), completions.mask.sum(1))
    assert (rollout.logprobs[rollout.mask] < 0).all() and not rollout.logprobs[~rollout.mask].any()


def test_prompts_are_texts_and_the_reward_model_reads_with_its_own_tokenizer(tmp_path):
    from transformers import LlamaForSequenceClassification

    other = tiny.tokenizer(template=tiny.PLAIN)
    torch.manual_seed(0)
    base = tiny.llama(len(other), other.eos_token_id, other.pad_token_id).config
    base.num_labels = 1
    scorer = RewardScorer(LlamaForSequenceClassification(base).eval(), other)
    seen = []

    def reward(records, completions, ended):
        assert all(isinstance(text, str) for text in completions)
        prompts = [record["prompt"] for record in records]
        seen.append(scorer.encode(prompts, completions, ended))
        return scorer(prompts, completions, ended)

    texts = [{"prompt": "hi"}, {"prompt": [{"role": "user", "content": "go"}]}]
    made = ppo_tiny.trainer(ppo_tiny.config(tmp_path), reward=reward, train_records=texts)
    assert [p.record for p in made.prompts] == texts  # a text and a conversation, as they came
    rollout = made._score(made.prompts * 4, made._complete(made.prompts * 4, 0))
    torch.testing.assert_close(rollout.scores, scorer.score_ids(seen[0]), atol=1e-6, rtol=0)
    assert rollout.scores.std() > 0
    spoken = rollout.sequences
    for ids, prompt, n, row in zip(
        spoken.ids, spoken.prompt_lengths, spoken.completion_lengths, seen[0], strict=True
    ):
        assert ids[: prompt + n].tolist() != row  # neither the ids nor the template are shared
        assert other.decode(row).startswith("User: ")


def test_a_rollout_does_not_depend_on_micro_batches_or_neighbours(tmp_path):
    found = []
    for rows in (1, 2, 8):
        made = ppo_tiny.trainer(
            ppo_tiny.config(tmp_path, per_device_train_batch_size=rows, eval_steps=0)
        )
        prompts = made.prompts + made.prompts[:2]
        found.append(made._score(prompts, made._complete(prompts, 0)))
    for other in found[1:]:
        for name in ("logprobs", "ref_logprobs", "values", "final_values", "entropy"):
            torch.testing.assert_close(
                getattr(other, name), getattr(found[0], name), atol=1e-6, rtol=1e-6
            )


# ---------------------------------------------------------------- rollout


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.name = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and made.numel() > self.elements:
                self.elements, self.name = made.numel(), str(func)
        return out


def test_no_tensor_of_a_rollout_has_a_logit_for_every_token(tmp_path, monkeypatch):
    """Neither generation nor scoring makes a tensor of a size anywhere near (B, T, V)."""
    vocabulary, rows, length, small = 5000, 16, 24, ppo_tiny.llama

    def wide(seed: int = 0) -> Any:
        lm = small(seed, width=16)
        lm.resize_token_embeddings(vocabulary, mean_resizing=False)
        return lm

    monkeypatch.setattr(ppo_tiny, "llama", wide)
    monkeypatch.setattr(models, "CHUNK_LOGITS", rows * vocabulary)
    made = ppo_tiny.trainer(
        ppo_tiny.config(tmp_path, per_device_train_batch_size=rows, max_completion_length=length)
    )
    prompts = (made.prompts * 3)[:rows]
    with Largest() as seen:
        completions = made._complete(prompts, 0)
        rollout = made._score(prompts, completions)
    tokens = int(rollout.mask.sum())
    assert tokens > rows * length / 2
    assert seen.elements <= 1.1 * rows * vocabulary, seen.name  # one token a row, or one chunk
    assert seen.elements < tokens * vocabulary / 10


# ---------------------------------------------------------------- rewards and advantages


def test_score_is_on_the_last_real_token_and_trls_on_the_first_pad():
    case = CASES["ragged"]
    scores, end = tensor(ppo_cases.inputs(case).scores), last(case)
    own, peer = tensor(ours("ragged")["rewards"]), tensor(golden("ragged")["rewards"])
    penalty = -case.kl_coef * tensor(golden("ragged")["kl"])
    row = torch.arange(case.rows)
    torch.testing.assert_close((own - penalty)[row, end], scores, atol=1e-6, rtol=0)
    assert not own[~real_mask(case)].any()
    early = (end + 1 < case.width).nonzero().squeeze(1)
    assert len(early) == case.rows - 1
    torch.testing.assert_close(peer[early, end[early] + 1], scores[early], atol=1e-6, rtol=0)


def test_an_ended_completion_has_no_next_value_and_trls_has_that_after_eos():
    """TRL's advantages are what `gae` gives with one state more; without it, the end is the end."""
    name = "ragged, discounted"
    case, peer = CASES[name], golden(name)
    longer = real_mask(case, extra=1)
    rewards, values = (torch.where(longer, tensor(peer[n]), 0.0) for n in ("rewards", "values"))
    nothing = torch.zeros(case.rows)
    theirs = adv.gae(rewards, values, longer, nothing, gamma=case.gamma, lam=case.lam)
    want = torch.where(longer, tensor(peer["unwhitened"]), 0.0)
    torch.testing.assert_close(theirs.advantages, want, atol=1e-5, rtol=0)

    own, row, end = ours(name), torch.arange(case.rows), last(case)
    ends = (tensor(own[n])[row, end] for n in ("returns", "rewards"))
    torch.testing.assert_close(*ends, atol=1e-6, rtol=0)
    shift = tensor(own["returns"]) - tensor(peer["returns"])
    assert shift[real_mask(case)].abs().max() > 0.1


def test_a_cut_completion_is_worth_the_value_of_its_last_state():
    case, row = CASES["cut"], torch.arange(CASES["cut"].rows)
    scored, cut = ours("cut"), ours("cut", truncated="bootstrap")
    with TemporaryDirectory() as folder:
        made = ppo_cases.trainer(case, Path(folder))
        final = ppo_cases.rolled_out(case, made).final_values
    kl = tensor(scored["kl"])[row, last(case)]
    score = tensor(ppo_cases.inputs(case).scores)
    torch.testing.assert_close(
        tensor(scored["returns"])[row, last(case)],
        score - case.missing_eos_penalty - case.kl_coef * kl,
        atol=1e-6,
        rtol=0,
    )
    torch.testing.assert_close(
        tensor(cut["returns"])[row, last(case)],
        case.gamma * final - case.missing_eos_penalty - case.kl_coef * kl,
        atol=1e-6,
        rtol=0,
    )


def test_variances_are_divided_by_n(tmp_path):
    """As in the code of 1909.08593 (tf.nn.moments); it is the whole difference of whitening."""
    case = CASES["plain"]
    with TemporaryDirectory() as folder:
        made = ppo_cases.trainer(case, Path(folder))
        own = made._advantages(ppo_cases.rolled_out(case, made)).advantages
    mask, peer = real_mask(case), tensor(golden("plain")["advantages"])
    n = int(mask.sum())
    torch.testing.assert_close(own, peer * math.sqrt(n / (n - 1)), atol=1e-5, rtol=0)
    assert own[mask].var(correction=0) == pytest.approx(1, abs=1e-5)
    assert peer[mask].var(correction=1) == pytest.approx(1, abs=1e-5)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_kl_estimates_equal_their_definition(p, q):
    """k1 = log(p / q), k2 = k1² / 2, k3 = q / p - 1 + k1 for a sample of p."""
    limited = float(np.clip(p - q, -10, 10))
    want = (limited, limited**2 / 2, np.exp(-limited) - 1 + limited)
    got = adv.kl_estimates(torch.tensor(p).double(), torch.tensor(q).double())
    np.testing.assert_allclose([x.item() for x in got], want, rtol=1e-5, atol=1e-5)


def test_k1_is_in_the_reward_and_k3_in_the_metric_both_clamped(tmp_path):
    made = ppo_tiny.trainer(ppo_tiny.config(tmp_path, kl_coef=0.5))
    rollout = made._score(made.prompts, made._complete(made.prompts, 0))
    rollout.scores.zero_()
    shift = torch.linspace(-1, 1, rollout.mask.numel()).reshape(rollout.mask.shape)
    shift[0, 0] = 99.0  # a probability of 0 under the reference
    rollout.ref_logprobs = torch.where(rollout.mask, rollout.logprobs - shift, 0.0)
    batch = made._advantages(rollout)
    k1 = torch.where(rollout.mask, shift.clamp(-10, 10), 0.0)
    torch.testing.assert_close(batch.rewards, -0.5 * k1, atol=1e-5, rtol=1e-5)
    found = metrics.rollout_metrics(batch, made.group)
    k3 = torch.where(rollout.mask, torch.exp(-k1) - 1 + k1, 0.0).sum(1).mean().item()
    assert found["kl"] == pytest.approx(k3, rel=1e-4)
    assert found["kl_k1"] == pytest.approx(k1.sum(1).mean().item(), rel=1e-4)
    assert k3 != pytest.approx(found["kl_k1"], rel=0.01)


def test_scores_are_normalised_and_clipped_before_kl_is_added(tmp_path):
    made = ppo_tiny.trainer(
        ppo_tiny.config(tmp_path, kl_coef=1.0, score_clip=0.5, normalize_scores=True),
        reward=lambda records, completions, ended: torch.linspace(100, 900, len(completions)),
    )
    rollout = made._score(made.prompts, made._complete(made.prompts, 0))
    rollout.ref_logprobs = torch.where(rollout.mask, rollout.logprobs - 3, 0.0)  # KL of 3 a token
    rewards = made._advantages(rollout).rewards
    normal = (rollout.scores - rollout.scores.mean()) / rollout.scores.std(correction=0)
    want = torch.where(rollout.mask, -3.0, 0.0)
    want[torch.arange(len(want)), rollout.mask.sum(1) - 1] += normal.clamp(-0.5, 0.5)
    torch.testing.assert_close(rewards, want, atol=1e-5, rtol=0)
    assert rewards.min() < -3 and normal.abs().max() > 1


# ---------------------------------------------------------------- loss and optimisation


def test_losses_do_not_depend_on_micro_batches_and_trls_do():
    whole, cut = "ragged", "ragged, micro-batches"
    for name in ("policy_loss", "value_loss", "total_loss", "grad_norm_policy", "grad_norm_value"):
        assert ours(cut)[name] == pytest.approx(ours(whole)[name], abs=2e-5), name
        assert golden(cut)[name] != pytest.approx(golden(whole)[name], abs=1e-3), name


def test_the_value_after_eos_is_not_trained_and_trls_is():
    """TRL's value loss is ours on one state more for each completion that ended early."""
    name = "ragged"
    case, peer = CASES[name], golden(name)
    with TemporaryDirectory() as folder:
        made = ppo_cases.trainer(case, Path(folder))
        rollout = ppo_cases.rolled_out(case, made)
        ppo_cases.become_the_models_that_train(made)
        with torch.no_grad():
            values = made.networks("value", rollout.sequences, extra=1)
    longer = torch.cat((real_mask(case), torch.zeros(case.rows, 1, dtype=torch.bool)), 1)
    longer[torch.arange(case.rows), last(case) + 1] = True
    grid = torch.zeros(longer.shape).masked_scatter(longer, values)[:, : case.width]
    for extra, want in ((0, ours(name)["value_loss"][0]), (1, peer["value_loss"][0])):
        mask = real_mask(case, extra)
        old, returns = tensor(peer["values"])[mask], tensor(peer["returns"])[mask]
        out = loss.value_loss(grid[mask], old, returns, cliprange_value=case.cliprange_value)
        assert out.loss.item() / int(mask.sum()) == pytest.approx(want, abs=1e-5)
    assert ours(name)["value_loss"][0] != pytest.approx(peer["value_loss"][0], abs=1e-2)


def test_every_mini_batch_is_an_optimizer_step_and_trls_are_merged():
    assert golden("straddling")["steps"] == 1
    assert len(ours("straddling")["total_loss"]) == CASES["straddling"].num_mini_batches == 2


def test_the_last_batch_of_the_data_is_one_step_and_trls_several():
    assert golden("last batch")["steps"] == 2
    assert len(ours("last batch")["total_loss"]) == 1


def test_max_grad_norm_is_obeyed_and_trl_ignores_it():
    limit = CASES["tight norm"].max_grad_norm
    parts = ("grad_norm_policy", "grad_norm_value")
    own, peer = (math.hypot(*(side[p][0] for p in parts)) for side in (
        ours("tight norm"), golden("tight norm"),
    ))  # fmt: skip
    assert own == pytest.approx(limit, rel=1e-3)
    assert peer > 100 * limit


def test_eps_of_adam_is_1e_5(tmp_path):
    made = ppo_tiny.trainer(ppo_tiny.config(tmp_path))
    assert {group["eps"] for group in made.optimizer.param_groups} == {1e-5}


def test_the_mean_ratio_leaves_padding_out_and_trls_does_not():
    case = CASES["ragged"]
    own, peer = ours("ragged")["ratio"][0], golden("ragged")["ratio"][0]
    share = real_mask(case).float().mean().item()
    assert share < 0.9 and abs(own - 1) > 0.01
    assert peer == pytest.approx(share * own + (1 - share), abs=1e-5)


# ---------------------------------------------------------------- adapters


def two_adapters(*, recompute: bool) -> Any:
    settings = ppo_tiny.config(Path("x"), use_peft=True)
    lm = ppo_tiny.llama()
    policy = add_adapters(lm, lora_config(settings, "CAUSAL_LM", lm), seed=0)
    networks = assemble(policy, None, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in networks.named_parameters():
        if "lora_B" in name:  # as after some training
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    if recompute:
        enable_checkpointing(networks)
    return networks.train()


def batch_of_sequences() -> models.Sequences:
    prompts = tokenize(ppo_tiny.RECORDS, ppo_tiny.tokenizer(), 64)
    drawn = generate.draws(0, 0, len(prompts), 9)
    rows = [p.ids + [3 + int(40 * u) for u in r] for p, r in zip(prompts, drawn, strict=True)]
    width = max(map(len, rows))
    return models.Sequences(
        torch.tensor([r + [0] * (width - len(r)) for r in rows]),
        torch.tensor([len(p.ids) for p in prompts]),
        torch.full((len(rows),), 9),
    )


def gradients(networks: Any, *, together: bool = False) -> dict[str, Tensor]:
    """Of both adapters; ``together``: both forward passes come before one backward pass."""
    sequences, losses = batch_of_sequences(), []
    for which in ("value", "policy"):
        out = networks(which, sequences)
        losses.append((out.logprobs if which == "policy" else out).square().mean())
        if not together:
            losses.pop().backward()
    if together:
        sum(losses).backward()
    return {n: p.grad.clone() for n, p in networks.named_parameters() if p.grad is not None}


def test_recomputed_activations_give_both_adapters_the_same_gradients():
    kept, again = (gradients(two_adapters(recompute=r)) for r in (False, True))
    assert kept.keys() == again.keys()
    assert {n.split(".")[-2] for n in kept if "lora_" in n} == {"default", "value"}
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-5, rtol=1e-5)
    for adapter in ("default", "value"):
        assert max(g.abs().max() for n, g in kept.items() if f".{adapter}." in n) > 1e-2


def test_both_forward_passes_before_one_backward_pass_would_be_wrong():
    """The trap that the order of passes avoids is there: recomputation runs the other adapter."""
    right = gradients(two_adapters(recompute=True))
    wrong = gradients(two_adapters(recompute=True), together=True)
    value = [n for n in right if ".value." in n]
    off = max(
        ((wrong.get(n, torch.zeros(())) - right[n]).norm() / right[n].norm()).item() for n in value
    )
    assert off > 0.1
