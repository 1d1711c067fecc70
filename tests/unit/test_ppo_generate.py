"""Completions depend on weights, prompt and own random numbers, and on nothing else."""

import ppo_tiny
import pytest
import torch
from transformers import LlamaForCausalLM

from align.ppo.generate import Completions, draws, generate, sample


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    lm = ppo_tiny.llama(seed=3).eval()
    lm.lm_head.weight.data[[1, 5]] *= 3  # completions that end at different times
    return lm


def run(
    model: LlamaForCausalLM, prompts: list[list[int]], uniforms: torch.Tensor, pad: int = 0
) -> Completions:
    width = max(map(len, prompts)) + pad
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return generate(
        model, ids, ids != 0, uniforms, eos_token_ids=[1, 5], pad_token_id=0, temperature=1.0
    )


PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15, 16], [17, 18], [20, 21, 22, 23]] * 5
UNIFORMS = draws(0, 0, len(PROMPTS), 24)


def test_rows_end_at_different_times_and_are_masked_after_their_stop_token(model):
    out = run(model, PROMPTS, UNIFORMS)
    lengths = out.mask.sum(1)
    assert len(set(lengths.tolist())) > 5 and out.ended.any() and not out.ended.all()
    for row, mask, ended, n in zip(*out[:3], lengths.tolist(), strict=True):
        assert mask[:n].all() and not mask[n:].any() and not row[n:].any()
        stops = [t in (1, 5) for t in row[:n].tolist()]
        assert not any(stops[:-1]) and stops[-1] == bool(ended)
        assert bool(ended) or n == 24


def test_padding_neighbours_and_order_change_nothing(model):
    together = run(model, PROMPTS, UNIFORMS)
    padded = run(model, PROMPTS, UNIFORMS, pad=9)
    assert all(torch.equal(a, b) for a, b in zip(together[:3], padded[:3], strict=True))
    for i in (0, 6, 12):
        alone = run(model, [PROMPTS[i]], UNIFORMS[i : i + 1])
        assert torch.equal(alone.ids[0], together.ids[i])
    back = run(model, PROMPTS[::-1], UNIFORMS.flip(0))
    assert torch.equal(back.ids.flip(0), together.ids)


def test_global_random_state_is_neither_read_nor_moved(model):
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), run(model, PROMPTS, draws(0, 0, len(PROMPTS), 24))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first.ids, run(model, PROMPTS, draws(0, 0, len(PROMPTS), 24)).ids)


def test_greedy_equals_transformers(model):
    """With a random number of almost 0 or a temperature of almost 0 the likeliest token comes."""
    ids = torch.tensor([[0, 0, 7, 8], [9, 10, 11, 12]])
    ours = generate(
        model,
        ids,
        ids != 0,
        torch.full((2, 12), 0.5).double(),
        eos_token_ids=[1],
        pad_token_id=0,
        temperature=1e-4,
    )
    theirs = model.generate(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=1,
        pad_token_id=0,
    )[:, 4:]
    assert torch.equal(ours.ids[:, : theirs.shape[1]], theirs)


def test_a_model_with_sliding_attention_gets_its_own_masks():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=47,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    mistral = MistralForCausalLM(config).eval()
    ids = torch.tensor([[0, 0, 7, 8, 9, 10, 11], [9, 10, 11, 12, 13, 14, 15]])
    ours = generate(
        mistral,
        ids,
        ids != 0,
        torch.full((2, 9), 0.5).double(),
        eos_token_ids=[1],
        pad_token_id=0,
        temperature=1e-4,
    )
    theirs = mistral.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=9, do_sample=False
    )[:, 7:]
    assert torch.equal(ours.ids[:, : theirs.shape[1]], theirs)


def test_sampling_has_the_frequencies_of_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -30.0]).log_softmax(0)
    uniform = (torch.arange(10_000).double() + 0.5) / 10_000
    for temperature in (1.0, 0.5):
        got = sample(logits.expand(10_000, 4), uniform, temperature).bincount(minlength=4) / 10_000
        torch.testing.assert_close(got, torch.softmax(logits / temperature, 0), atol=2e-4, rtol=0)
