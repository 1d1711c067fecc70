"""What SFT and the reward model share around their trainers: order of rows, batches, the end."""

import random
from itertools import pairwise

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.training import RowSampler, row_order


def groups_of(sizes):
    rows = iter(range(sum(sizes)))
    return [[next(rows) for _ in range(size)] for size in sizes]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=80),
    batch=st.integers(1, 9),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_every_row_once_and_only_arguments_count(sizes, batch, seed, epoch):
    groups = groups_of(sizes)
    lengths = [random.Random(i).randint(1, 50) for i in range(sum(sizes))]
    order = row_order(groups, lengths, batch, seed, epoch)
    assert sorted(order) == list(range(sum(sizes)))
    assert order == row_order(groups, lengths, batch, seed, epoch)


def test_epochs_and_seeds_differ():
    singles, lengths = groups_of([1] * 100), [1] * 100
    orders = {tuple(row_order(singles, lengths, 4, s, e)) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def batches(order, size):
    return [order[i : i + size] for i in range(0, len(order), size)]


def test_batches_hold_rows_of_similar_length_and_are_shuffled():
    draw = random.Random(0)
    lengths = [draw.randint(10, 100) for _ in range(3217)]
    made = batches(row_order(groups_of([1] * len(lengths)), lengths, 16, 0, 0), 16)
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in made)
    assert padded < 1.06 * sum(lengths)
    longest = [max(lengths[row] for row in batch) for batch in made]
    falls = sum(a > b for a, b in pairwise(longest))
    assert 0.3 < falls / len(longest) < 0.7


@pytest.mark.parametrize("batch", [4, 8])
def test_pairs_of_one_prompt_share_a_batch(batch):
    draw = random.Random(1)
    groups = groups_of([draw.choice([1, 1, 2, 3, 4]) for _ in range(300)])
    lengths = [draw.randint(10, 100) for _ in range(sum(map(len, groups)))]
    where = {}
    for number, rows in enumerate(batches(row_order(groups, lengths, batch, 0, 0), batch)):
        where |= dict.fromkeys(rows, number)
    split = sum(len({where[row] for row in group}) > 1 for group in groups)
    assert split <= 0.02 * len(groups)


def test_a_group_larger_than_a_batch_is_cut():
    assert sorted(row_order(groups_of([10]), [1] * 10, 4, 0, 0)) == list(range(10))


def test_packed_records_would_read_each_other_so_packing_needs_a_kernel_that_parts_them():
    """Why `align.preflight` refuses packing with sdpa: with its usual arguments it leaks."""
    lm = tiny.llama(64, 1, 0).eval()
    first, second = torch.randint(2, 64, (1, 7)), torch.randint(2, 64, (1, 5))
    packed = torch.cat((first, second), 1)
    position = torch.cat((torch.arange(7), torch.arange(5))).unsqueeze(0)
    with torch.no_grad():
        alone = lm(input_ids=second).logits
        leaking = lm(input_ids=packed, position_ids=position).logits[:, 7:]
        masked = lm(
            input_ids=packed, position_ids=position, attention_mask=torch.ones_like(packed)
        ).logits[:, 7:]
    assert (leaking - alone).abs().max() > 1e-3 < (masked - alone).abs().max()


def test_the_sampler_follows_the_epoch():
    sampler = RowSampler(groups_of([1] * 50), [1] * 50, 4, 0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first and len(sampler) == 50
    sampler.set_epoch(0)
    assert list(sampler) == first
