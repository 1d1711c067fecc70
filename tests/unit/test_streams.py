"""Small networks on several cores: the same numbers as on one, and the same bits every time."""

import os
import threading

import ppo_tiny
import pytest
import torch
from torch import nn

from align.ppo.lora import merged
from align.ppo.models import Networks
from align.streams import Streams, twin


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weights(trainer) -> dict[str, torch.Tensor]:
    networks = trainer.accelerator.unwrap_model(trainer.networks)
    return {n: p.detach().clone() for n, p in networks.named_parameters() if p.requires_grad}


def run(folder, **options) -> dict[str, torch.Tensor]:
    trainer = ppo_tiny.trainer(ppo_tiny.config(folder, **options))
    trainer.train()
    return weights(trainer)


def test_a_twin_shares_weights_and_nothing_else():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network[0].bias.requires_grad_(False)
    other = twin(network)
    assert other[0].weight.data_ptr() == network[0].weight.data_ptr()
    assert other[1].running_mean is network[1].running_mean
    other(torch.ones(2, 3)).sum().backward()
    assert network[0].weight.grad is None and other[0].weight.grad is not None
    assert not other[0].bias.requires_grad
    network[0].weight.data.fill_(2.0)
    assert (other[0].weight == 2).all()
    other[1].eval()
    assert network[1].training


def test_tied_weights_stay_tied_in_a_twin():
    network = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    network[1].weight = network[0].weight
    other = twin(network)
    assert other[1].weight is other[0].weight


def test_results_come_in_order_and_each_core_takes_its_share(two_cores):
    streams = Streams(nn.Linear(2, 2))
    seen: dict[int, set[int]] = {}

    def work(network, part):
        seen.setdefault(streams.networks.index(network), set()).add(part)
        assert torch.get_num_threads() == 1
        return part * part, threading.current_thread().name

    found = streams.map(work, list(range(7)))
    assert [value for value, _ in found] == [0, 1, 4, 9, 16, 25, 36]
    assert seen == {0: {0, 3, 4}, 1: {1, 2, 5, 6}}
    assert torch.get_num_threads() == 2
    with streams.one_at_a_time():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_an_error_in_a_stream_is_raised(two_cores):
    streams = Streams(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="third"):
        streams.map(lambda network, part: (_ for _ in ()).throw(ValueError("third")), [0, 1])
    assert torch.get_num_threads() == 2


def test_a_forked_process_has_threads_of_its_own(two_cores):
    streams = Streams(nn.Linear(2, 2))
    streams.map(lambda network, part: part, [0, 1])
    child = os.fork()
    if child == 0:
        os._exit(0 if streams.map(lambda network, part: part, [0, 1, 2]) == [0, 1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_gradients_of_all_copies_are_added(two_cores):
    streams = Streams(nn.Linear(2, 1))
    x = torch.arange(8.0).reshape(4, 2)
    streams.map(lambda network, row: network(x[row]).sum().backward(), [0, 1, 2, 3])
    streams.add_gradients()
    assert torch.equal(streams.networks[0].weight.grad, x.sum(0, keepdim=True))
    assert all(p.grad is None for p in streams.networks[1].parameters())


def test_one_stream_where_copies_would_not_pay(two_cores, monkeypatch):
    assert Streams(nn.Linear(2, 2)).count == 2
    with monkeypatch.context() as patch:
        patch.setattr("align.streams.SMALL", 3)
        assert Streams(nn.Linear(2, 2)).count == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Streams(nn.Linear(2, 2)).count == 1


def test_every_stream_gets_two_micro_batches(two_cores):
    streams = Streams(nn.Linear(2, 2))
    assert streams.rows(8, 64) == 8
    assert streams.rows(32, 64) == 16
    assert streams.rows(8, 2) == 1


@pytest.mark.parametrize("lora", [False, True])
def test_two_cores_train_as_one_does_and_twice_the_same(tmp_path, lora, two_cores):
    options = {"use_peft": lora, "per_device_train_batch_size": 4, "total_episodes": 32}
    options["gradient_accumulation_steps"] = 2
    two = run(tmp_path / "two", **options)
    again = run(tmp_path / "again", **options)
    torch.set_num_threads(1)
    one = run(tmp_path / "one", **options)
    for name, weight in one.items():
        assert torch.equal(two[name], again[name]), name
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=1e-4)


def test_two_cores_with_ptx_and_an_average_resume_bit_for_bit(tmp_path, two_cores):
    options = {"total_episodes": 24, "save_steps": 1, "ema_decay": 0.9}
    options |= {"ptx_coef": 0.5, "ptx_datasets": {"tiny": 1.0}}
    records = [{**ppo_tiny.RECORDS[0], "answer": "four", "completion": "four"}]
    whole = ppo_tiny.trainer(ppo_tiny.config(tmp_path / "whole", **options), ptx_records=records)
    whole.train()

    class Killed(Exception):
        pass

    broken = ppo_tiny.trainer(ppo_tiny.config(tmp_path / "cut", **options), ptx_records=records)
    advance, seen = broken.watch.advance, []

    def stop(*args):
        advance(*args)
        seen.append(1)
        if len(seen) == 2:
            raise Killed

    broken.watch.advance = stop
    with pytest.raises(Killed):
        broken.train()
    settings = ppo_tiny.config(tmp_path / "cut", **options, resume=True)
    resumed = ppo_tiny.trainer(settings, ptx_records=records)
    resumed.train()
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight), name


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=["fp32", "bf16"]
)
def test_merged_adapters_sample_the_same_policy_and_leave_its_base_alone(
    tmp_path, dtype, tolerance
):
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path, use_peft=True))
    networks: Networks = trainer.networks
    ppo_tiny.random_adapter(networks, 3).to(dtype)
    before = {n: p.clone() for n, p in networks.named_parameters()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = networks.policy(ids).logits
        with merged(networks.policy):
            whole = networks.policy(ids).logits
        after = networks.policy(ids).logits
    torch.testing.assert_close(whole, plain, atol=tolerance, rtol=tolerance)
    assert not torch.equal(whole, plain) and torch.equal(after, plain)
    assert all(torch.equal(p, before[n]) for n, p in networks.named_parameters())
