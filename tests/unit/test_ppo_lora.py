"""Fused LoRA layers give what peft's layers give, forward and backward."""

from pathlib import Path

import ppo_tiny
import pytest
import torch

from align.checkpoint import lora_config
from align.ppo import adapters, lora
from align.ppo.adapters import add_adapters
from align.ppo.build import assemble
from align.ppo.models import Sequences

SEQUENCES = Sequences(
    torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0)),
    torch.tensor([2, 5, 3]),
    torch.tensor([4, 1, 6]),
)


def networks(monkeypatch, fused: bool, dtype: torch.dtype = torch.float32):
    """Policy and value adapters as after some training, on layers that are fused or peft's own."""
    if not fused:
        monkeypatch.setattr(adapters, "fuse", lambda model: None)
    lm = ppo_tiny.llama().to(dtype)
    settings = lora_config(ppo_tiny.config(Path("x"), use_peft=True), "CAUSAL_LM", lm)
    made = assemble(add_adapters(lm, settings, seed=0), None, seed=0)
    monkeypatch.undo()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def results(made) -> dict[str, torch.Tensor]:
    """Values, log-probabilities and the gradient of everything that learns."""
    values = made("value", SEQUENCES)
    values.square().sum().backward()
    logprobs = made("policy", SEQUENCES).logprobs
    logprobs.square().sum().backward()
    gradients = {n: p.grad for n, p in made.named_parameters() if p.requires_grad}
    return {"values": values.detach(), "logprobs": logprobs.detach(), **gradients}


def calls(monkeypatch) -> list[int]:
    """Counts how often a layer computes by `lora_linear`."""
    seen: list[int] = []
    plain = lora.lora_linear
    monkeypatch.setattr(lora, "lora_linear", lambda *a: seen.append(1) or plain(*a))
    return seen


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)], ids=["fp32", "bf16"]
)
def test_values_and_gradients_are_those_of_peft(monkeypatch, dtype, tolerance):
    want = results(networks(monkeypatch, False, dtype))
    made = networks(monkeypatch, True, dtype)
    seen = calls(monkeypatch)
    got = results(made)
    assert len(seen) == 2 * 2 * 7  # two networks, two layers of seven linear maps
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        scale = tensor.abs().max().clamp(min=1e-3)
        assert (got[name] - tensor).abs().max() <= tolerance * scale, name


def test_autocast_and_switched_off_adapters_take_the_way_of_peft(monkeypatch):
    made = networks(monkeypatch, True)
    seen = calls(monkeypatch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made("policy", SEQUENCES)
    with torch.no_grad(), made.policy.disable_adapter():
        made.policy(SEQUENCES.ids)
    assert not seen
