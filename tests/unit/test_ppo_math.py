"""The tensor math of PPO against plain NumPy loops, on shapes that hypothesis makes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from align.ppo import advantages as adv
from align.ppo import loss
from align.ppo.rewards import RunningScale, shape_scores


@st.composite
def ragged(draw: st.DrawFn) -> tuple[torch.Generator, Tensor]:
    """A generator and a right-padded mask (B, T) without empty rows."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    width = max(lengths) + draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return generator, torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def normal(generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def numpy_gae(rewards, values, mask, bootstrap, gamma, lam):
    """Equation 16 of 1506.02438 written as its sum over future errors."""
    out = np.zeros(rewards.shape)
    for b, row in enumerate(mask):
        n = int(row.sum())
        following = np.append(values[b, 1:n], bootstrap[b])
        errors = rewards[b, :n] + gamma * following - values[b, :n]
        for t in range(n):
            out[b, t] = sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, n))
    return out


@settings(deadline=None, max_examples=50)
@given(ragged(), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_its_definition(case, gamma, lam):
    generator, mask = case
    rewards, values = normal(generator, mask), normal(generator, mask)
    bootstrap = normal(generator, mask[:, 0])
    got = adv.gae(rewards, values, mask, bootstrap, gamma=gamma, lam=lam)
    want = numpy_gae(*(x.numpy() for x in (rewards, values, mask, bootstrap)), gamma, lam)
    np.testing.assert_allclose(got.advantages.numpy(), want, atol=1e-9)
    np.testing.assert_allclose(got.returns[mask], (got.advantages + values)[mask])
    assert not got.returns[~mask].any()


@settings(deadline=None, max_examples=30)
@given(ragged(), st.floats(0.5, 4))
def test_importance_weights_are_probability_ratios_up_to_the_cap(case, cap):
    """Vocabulary of 5: the mean weighted with the sampler's probabilities is 1 without a cap."""
    generator, mask = case
    ours, theirs = (
        torch.randn(*mask.shape, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
        for _ in range(2)
    )
    tokens = torch.randint(0, 5, mask.shape, generator=generator).unsqueeze(-1)
    p, q = (x.gather(-1, tokens).squeeze(-1).where(mask, 0.0) for x in (ours, theirs))
    got = adv.importance_weights(p, q, cap)
    want = np.minimum(np.exp(p.numpy()) / np.exp(q.numpy()), cap)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9)
    every = adv.importance_weights(ours, theirs, 1e9)
    np.testing.assert_allclose((every * theirs.exp()).sum(-1).numpy(), 1.0, rtol=1e-9)
    assert (adv.importance_weights(p, p, 2.0) == 1).all()


def test_a_truncated_completion_is_bootstrapped_and_a_terminated_one_is_not():
    rewards, values = torch.zeros(2, 3), torch.zeros(2, 3)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    got = adv.gae(rewards, values, mask, torch.tensor([5.0, 0.0]), gamma=1.0, lam=1.0)
    assert got.returns.tolist() == [[5.0, 5.0, 0.0], [0.0, 0.0, 0.0]]


@settings(deadline=None, max_examples=50)
@given(ragged(), st.integers(0, 4))
def test_padding_changes_no_advantage(case, more):
    generator, mask = case
    rewards, values = normal(generator, mask), normal(generator, mask)
    bootstrap = normal(generator, mask[:, 0])

    def wider(x: Tensor) -> Tensor:
        return (
            torch.cat((x, x.new_full((len(x), more), 7)), 1)
            if x.dtype != torch.bool
            else (torch.cat((x, x.new_zeros(len(x), more)), 1))
        )

    a = adv.gae(rewards, values, mask, bootstrap, gamma=0.9, lam=0.8)
    b = adv.gae(wider(rewards), wider(values), wider(mask), bootstrap, gamma=0.9, lam=0.8)
    assert torch.equal(a.advantages, b.advantages[:, : mask.shape[1]])
    assert not b.advantages[:, mask.shape[1] :].any()


@settings(deadline=None, max_examples=50)
@given(ragged())
def test_whitened_advantages_have_mean_0_and_variance_1_over_real_tokens(case):
    generator, mask = case
    x = normal(generator, mask) * 3 + 2
    moments = adv.masked_moments(x, mask)
    real = x[mask].numpy()
    np.testing.assert_allclose(moments.mean, real.mean())
    np.testing.assert_allclose(moments.var, real.var(), atol=1e-12)
    if len(real) > 1:
        white = adv.whiten(x, mask, moments)[mask].numpy()
        np.testing.assert_allclose([white.mean(), white.var()], [0, 1], atol=1e-5)
        kept = adv.whiten(x, mask, moments, shift_mean=False)[mask].numpy()
        np.testing.assert_allclose(kept.mean(), real.mean(), atol=1e-6)
    assert not adv.whiten(x, mask, moments)[~mask].any()


def test_moments_are_those_of_all_processes():
    x, y = torch.randn(3, 4).double(), torch.randn(2, 4).double() + 5
    whole = adv.masked_moments(torch.cat((x, y)), torch.ones(5, 4, dtype=torch.bool))
    sums = iter([torch.stack((y.sum(), torch.tensor(8.0))), (y - whole.mean).square().sum()])
    shared = adv.masked_moments(x, torch.ones(3, 4, dtype=torch.bool), lambda t: t + next(sums))
    torch.testing.assert_close(shared, whole)


@settings(deadline=None, max_examples=50)
@given(ragged())
def test_score_sits_on_the_last_real_token(case):
    generator, mask = case
    kl, scores = normal(generator, mask), normal(generator, mask[:, 0])
    got = adv.token_rewards(scores, kl, mask, 0.1).numpy()
    want = np.where(mask, -0.1 * kl.numpy(), 0)
    for b, row in enumerate(mask.numpy()):
        want[b, row.sum() - 1] += scores[b].item()
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_kl_estimates_average_to_the_kl():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(20, generator=generator).double().log_softmax(0)
    q = torch.randn(20, generator=generator).double().log_softmax(0)
    exact = (p.exp() * (p - q)).sum().item()
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator)
    k1, k2, k3 = adv.kl_estimates(p[drawn], q[drawn])
    for estimate in (k1, k3):
        assert estimate.mean().item() == pytest.approx(exact, rel=0.02)
    assert (k3 >= 0).all() and (k2 >= 0).all() and (k1 < 0).any()
    assert k3.std() < k1.std()


def test_log_ratios_are_clamped_so_that_nothing_overflows():
    estimates = adv.kl_estimates(torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0]))
    assert all(x.isfinite().all() for x in estimates)
    assert estimates.k1.tolist() == [10.0, -10.0]


def test_first_pass_has_ratio_1_and_the_plain_policy_gradient():
    logprobs = torch.randn(7, dtype=torch.float64).requires_grad_()
    advantages = torch.randn(7, dtype=torch.float64)
    out = loss.policy_loss(logprobs, logprobs.detach(), advantages, cliprange=0.2)
    out.loss.backward()
    assert (out.ratio_sum, out.ratio_max, out.clipped, out.approx_kl) == (7, 1, 0, 0)
    torch.testing.assert_close(logprobs.grad, -advantages)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from([None, 2.0]))
def test_policy_loss_equals_its_definition(seed, dual):
    generator = torch.Generator().manual_seed(seed)
    new, old, a = (torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(3))
    got = loss.policy_loss(new, old, a, cliprange=0.2, dual_clip=dual).loss.item()
    want = 0.0
    for n, o, x in zip(new.tolist(), old.tolist(), a.tolist(), strict=True):
        ratio = math.exp(n - o)
        gain = min(ratio * x, min(max(ratio, 0.8), 1.2) * x)
        want -= max(gain, dual * x) if dual and x < 0 else gain
    assert got == pytest.approx(want)


def test_value_loss_takes_the_worse_of_free_and_clipped():
    values = torch.tensor([0.0, 1.0, 1.0], requires_grad=True)
    out = loss.value_loss(
        values, torch.zeros(3), torch.tensor([1.0, 2.0, 0.0]), cliprange_value=0.2
    )
    assert out.loss.item() == pytest.approx((1.0 + 1.8**2 + 1.0) / 2)
    assert out.clipped == 1
    out.loss.backward()
    assert values.grad[1] == 0  # clipped: no gradient


def test_no_value_counts_as_clipped_by_rounding():
    new, old, returns = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    assert loss.value_loss(new / 100, old, returns, cliprange_value=99.0).clipped == 0


def test_entropy_of_known_distributions():
    logits = torch.stack((torch.zeros(8), torch.tensor([100.0] + [0.0] * 7)))
    torch.testing.assert_close(loss.entropy(logits), torch.tensor([math.log(8), 0.0]))


def test_scores_are_clipped_before_penalties_and_a_cut_completion_keeps_only_those():
    arguments = {
        "scale": None,
        "clip": 1.0,
        "missing_eos_penalty": 3.0,
        "length_penalty": 0.5,
    }
    scores, ended = torch.tensor([9.0, 9.0]), torch.tensor([True, False])
    lengths = torch.tensor([2, 4])
    shaped = shape_scores(scores, ended, lengths, score_truncated=True, **arguments)
    assert shaped.tolist() == [0.0, -4.0]
    shaped = shape_scores(scores, ended, lengths, score_truncated=False, **arguments)
    assert shaped.tolist() == [0.0, -5.0]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.integers(1, 29))
def test_running_scale_equals_that_of_all_scores(scores, cut):
    scale = RunningScale()
    for part in (scores[:cut], scores[cut:]):
        if part:
            scale.update(len(part), np.mean(part), np.var(part) * len(part))
    assert scale.mean == pytest.approx(np.mean(scores), abs=1e-9)
    assert scale.std == pytest.approx(max(np.std(scores), 1e-4), abs=1e-6)
