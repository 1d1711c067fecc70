"""Layers below the first adapter: computed once a rollout, with the same numbers."""

from pathlib import Path

import ppo_tiny
import pytest
import torch
from test_ppo_networks import sequences
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTJConfig, GPTJForCausalLM

from align.checkpoint import lora_config
from align.errors import ConfigError
from align.ppo import trainer
from align.ppo.adapters import add_adapters
from align.ppo.build import assemble
from align.ppo.models import causal_lm
from align.ppo.rollout import with_trunk
from align.ppo.trunk import shared_layers
from align.streams import Streams

TOKENS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def gptj():
    """Its layers are called ``h`` and give tuples."""
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
    return GPTJForCausalLM(GPTJConfig(vocab_size=45, **size, **TOKENS)).eval()


def gemma2():
    """Scales its embeddings; every other layer sees a window only."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
    size |= {"num_key_value_heads": 2, "intermediate_size": 64, "sliding_window": 4}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=45, **size, **TOKENS)).eval()


def made(lm, **options):
    """Networks whose adapters are those of some training."""
    settings = ppo_tiny.config(Path("x"), use_peft=True, **options)
    networks = assemble(
        add_adapters(lm, lora_config(settings, "CAUSAL_LM", lm), seed=0), None, seed=0
    )
    ppo_tiny.random_adapter(networks, 1)
    return networks


def backbone(networks):
    return causal_lm(networks.policy).base_model


FAMILIES = {"llama": lambda: ppo_tiny.llama(layers=3), "gptj": gptj, "gemma2": gemma2}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", [1, 2, 3])
def test_adapters_are_in_the_last_layers_only(family, last):
    networks = made(FAMILIES[family](), lora_layers=last)
    numbers = {
        int(part)
        for name, _ in networks.named_parameters()
        for part in name.split(".")
        if "lora_" in name and part.isdigit()
    }
    assert numbers == set(range(3 - last, 3))
    assert shared_layers(backbone(networks)) == (0 if family == "gptj" else 3 - last)


def test_more_layers_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match="lora_layers is 4, but LlamaForCausalLM has 3 layers"):
        made(ppo_tiny.llama(layers=3), lora_layers=4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_passes_that_begin_above_the_trunk_give_the_same_values_and_gradients(family):
    networks = made(FAMILIES[family](), lora_layers=1)
    networks.trunk_layers = shared_layers(backbone(networks))
    ran: list[int] = []
    for i, layer in enumerate(backbone(networks).layers):
        layer.mlp.register_forward_hook(lambda module, given, out, i=i: ran.append(i))

    def results(seqs):
        networks.zero_grad()
        with torch.no_grad():
            reference = networks("reference", seqs).logprobs
        values = networks("value", seqs, extra=1)
        values.square().sum().backward()
        stats = networks("policy", seqs, with_entropy=True)
        (stats.logprobs.square().sum() + stats.entropy.sum()).backward()
        gradients = [p.grad.clone() for p in networks.parameters() if p.grad is not None]
        return [reference, values.detach(), stats.logprobs.detach(), *gradients]

    want = results(sequences(3))
    assert set(ran) == {0, 1, 2}
    ran.clear()
    shared = with_trunk(Streams(networks), sequences(3), networks.trunk_layers, 2)
    assert ran == [0, 1] * 2 and shared.trunk.states.shape == (3, 12, 32)  # two micro-batches
    ran.clear()
    got = results(shared.rows(torch.tensor([0, 1, 2])))
    assert set(ran) == {2}
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_nothing_is_shared_where_the_first_layers_are_trained_or_skipped():
    everywhere = made(ppo_tiny.llama(layers=3))
    assert shared_layers(backbone(everywhere)) == 0
    whole = assemble(ppo_tiny.llama(layers=3), None, seed=0)
    assert shared_layers(backbone(whole)) == 0

    embedded = made(ppo_tiny.llama(layers=3), lora_layers=1)
    backbone(embedded).embed_tokens.weight.requires_grad_(True)
    assert shared_layers(backbone(embedded)) == 0

    skipping = made(
        ppo_tiny.llama(layers=3), lora_layers=1
    )  # the last layer reads the first's state
    layers, kept = backbone(skipping).layers, []
    layers[0].register_forward_hook(lambda module, given, out: kept.append(out * 2))
    layers[0].mlp.register_forward_hook(lambda module, given, out: kept.append(out))
    layers[2].register_forward_pre_hook(lambda module, given: (given[0] + kept[-1], *given[1:]))
    assert shared_layers(backbone(skipping)) == 0


def test_a_run_learns_the_same_with_and_without_sharing(tmp_path, monkeypatch):
    def weights(name: str) -> dict[str, torch.Tensor]:
        settings = ppo_tiny.config(
            tmp_path / name, use_peft=True, lora_layers=1, learning_rate=1e-2, total_episodes=32
        )
        run = ppo_tiny.trainer(settings)
        run.train()
        networks = run.networks
        assert networks.trunk_layers == (1 if name == "shared" else 0)
        return {n: p.detach() for n, p in networks.named_parameters() if p.requires_grad}

    shared = weights("shared")
    monkeypatch.setattr(trainer, "shared_layers", lambda backbone: 0)
    apart = weights("apart")
    moved = sum(float(p.abs().sum()) for n, p in shared.items() if "lora_B" in n)
    assert moved > 0 and all(".0." not in name.split("layers")[-1][:3] for name in shared)
    for name, parameter in shared.items():
        torch.testing.assert_close(parameter, apart[name], atol=1e-4, rtol=1e-3)
