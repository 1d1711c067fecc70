"""Log-probabilities, values and adapters of the networks of PPO."""

import os
import subprocess
import sys
from pathlib import Path

import ppo_tiny
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from align.ppo import models
from align.ppo.adapters import add_adapters
from align.ppo.attention import use_float32_attention
from align.ppo.build import assemble
from align.ppo.models import Head, Sequences, policy_stats, token_stats


def sequences(more: int = 0) -> Sequences:
    """Three prompts of 2, 5 and 3 tokens with completions of 4, 1 and 6."""
    generator = torch.Generator().manual_seed(0)
    prompt, completion = torch.tensor([2, 5, 3]), torch.tensor([4, 1, 6])
    ids = torch.randint(3, 40, (3, 9), generator=generator)
    ids = torch.cat((ids, torch.zeros(3, more, dtype=torch.long)), 1)
    for row, n in enumerate((prompt + completion).tolist()):
        ids[row, n:] = 0
    return Sequences(ids, prompt, completion)


def by_hand(lm, seqs: Sequences, temperature: float) -> torch.Tensor:
    """Row by row, without any padding, through full logits."""
    found = []
    for ids, p, c in zip(*seqs[:3], strict=True):
        logits = lm(ids[: p + c].unsqueeze(0)).logits[0] / temperature
        logprobs = logits.log_softmax(-1)
        found += [logprobs[t - 1, ids[t]] for t in range(int(p), int(p + c))]
    return torch.stack(found)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_unpadded_full_logits(temperature):
    lm = ppo_tiny.llama().eval()
    seqs = sequences()
    got = policy_stats(lm, seqs, temperature, with_entropy=True)
    torch.testing.assert_close(got.logprobs, by_hand(lm, seqs, temperature), atol=1e-6, rtol=1e-6)
    assert (got.entropy > 0).all() and len(got.entropy) == 11


def test_the_amount_of_padding_changes_nothing():
    lm = ppo_tiny.llama().eval()
    few, many = (policy_stats(lm, sequences(more), 1.0, True) for more in (0, 7))
    assert (few.logprobs - many.logprobs).abs().max() <= 1e-6
    assert (few.entropy - many.entropy).abs().max() <= 1e-6


def test_rows_of_a_micro_batch_are_trimmed_and_give_the_same():
    lm = ppo_tiny.llama().eval()
    whole = policy_stats(lm, sequences(), 1.0, False).logprobs.split([4, 1, 6])
    part = sequences(5).rows(torch.tensor([1, 0]))
    assert part.ids.shape == (2, 6)
    got = policy_stats(lm, part, 1.0, False).logprobs
    torch.testing.assert_close(got, torch.cat((whole[1], whole[0])), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_last_mlp_leaves_prompts_out_and_the_gradients_are_the_same(family):
    if family == "llama":
        lm = ppo_tiny.llama()
        inside = lm.model.layers[-1].mlp.gate_proj
    else:
        torch.manual_seed(0)
        size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        lm = GPT2LMHeadModel(GPT2Config(vocab_size=42, **size)).eval()
        inside = lm.transformer.h[-1].mlp.c_fc
    seen = []
    inside.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[:-1].numel()))

    def gradients(trimmed: bool) -> list[torch.Tensor]:
        if trimmed:
            stats = policy_stats(lm, sequences(), 1.0, False)
            stats.logprobs.square().sum().backward()
        else:
            by_hand(lm, sequences(), 1.0).square().sum().backward()
        found = [p.grad for p in lm.parameters()]
        lm.zero_grad()
        return found

    for got, want in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    assert seen == [11, 6, 6, 9]  # states before a completion token; then each row whole


def test_lengths_are_rounded_up_in_bfloat16_on_a_cpu_and_nothing_else_changes():
    lm = ppo_tiny.llama().eval().to(torch.bfloat16)
    seen = []
    lm.model.layers[0].mlp.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    got = policy_stats(lm, sequences(), 1.0, with_entropy=True)
    assert seen == [16] and len(got.logprobs) == len(got.entropy) == 11
    torch.testing.assert_close(
        got.logprobs, by_hand(lm, sequences(), 1.0).float(), atol=0.1, rtol=0.1
    )


def test_bfloat16_attention_is_computed_in_float32():
    lm = ppo_tiny.llama().eval().to(torch.bfloat16)
    plain = policy_stats(lm, sequences(), 1.0, False).logprobs
    use_float32_attention(lm, None)
    got = policy_stats(lm, sequences(), 1.0, False).logprobs
    exact = policy_stats(ppo_tiny.llama().eval(), sequences(), 1.0, False).logprobs
    assert not torch.equal(got, plain)
    assert (got - exact).abs().max() <= 0.2
    assert lm.config.to_dict().get("attn_implementation") is None  # nothing of it is saved


def test_chunks_of_the_head_give_the_same_values_and_gradients(monkeypatch):
    lm = ppo_tiny.llama()
    hidden, targets = torch.randn(23, 32), torch.randint(0, 40, (23,))
    found = []
    for limit in (2**24, 45 * 4):
        monkeypatch.setattr(models, "CHUNK_LOGITS", limit)
        h = hidden.clone().requires_grad_()
        lm.zero_grad()
        stats = token_stats(Head.of(lm), h, targets, 0.9, with_entropy=True)
        (stats.logprobs.sum() - 0.3 * stats.entropy.sum()).backward()
        found.append(
            (stats.logprobs.detach(), stats.entropy.detach(), h.grad, lm.lm_head.weight.grad)
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_all_logits_never_exist_at_once(monkeypatch):
    lm = ppo_tiny.llama()
    monkeypatch.setattr(models, "CHUNK_LOGITS", 45 * 4)
    seen = []
    lm.lm_head.register_forward_hook(lambda m, i, out: seen.append(out.shape[0]))
    policy_stats(lm, sequences(), 1.0, False)
    assert max(seen) == 4 and sum(seen) == 11  # completion tokens only, no prompt, no padding


def test_values_are_those_of_the_states_before_and_after_the_tokens():
    networks = assemble(ppo_tiny.llama(), None, seed=0)
    seqs = sequences()
    with torch.no_grad():
        values = networks("value", seqs, extra=1).split([5, 2, 7])
        for row, (ids, p, c) in enumerate(zip(*seqs[:3], strict=True)):
            hidden = networks.value_backbone(ids[: p + c].unsqueeze(0)).last_hidden_state[0]
            want = networks.value_head(hidden[p - 1 :]).squeeze(-1)
            torch.testing.assert_close(values[row], want, atol=1e-6, rtol=1e-6)


def test_head_scaling_of_other_architectures_is_kept():
    lm = ppo_tiny.llama()
    lm.config.final_logit_softcapping = 2.0
    assert Head.of(lm)(torch.randn(5, 32) * 100).abs().max() <= 2.0


# ---------------------------------------------------------------- adapters on one backbone


@pytest.fixture
def shared():
    from align.checkpoint import lora_config

    settings = ppo_tiny.config(Path("x"), use_peft=True)
    lm = ppo_tiny.llama()
    policy = add_adapters(lm, lora_config(settings, "CAUSAL_LM", lm), seed=0)
    networks = assemble(policy, None, seed=0)
    for name, parameter in networks.named_parameters():
        if "lora_B" in name:  # as after some training
            torch.nn.init.normal_(parameter, std=0.3)
    return networks


def test_the_reference_is_the_base_bit_for_bit_and_leaves_everything_trainable(shared):
    networks = shared
    before = [n for n, p in networks.named_parameters() if p.requires_grad]
    got = networks("reference", sequences()).logprobs
    assert torch.equal(got, policy_stats(ppo_tiny.llama(), sequences(), 1.0, False).logprobs)
    with torch.no_grad():
        assert not torch.equal(got, networks("policy", sequences()).logprobs)
    networks("value", sequences())
    assert [n for n, p in networks.named_parameters() if p.requires_grad] == before
    assert all(".default." in n or ".value." in n or "value_head" in n for n in before)


@pytest.mark.parametrize("recompute", [False, True])
def test_each_adapter_gets_the_gradient_that_it_gets_alone(shared, recompute):
    """Two adapters in one forward pass would leave the first without a gradient, and recomputed
    activations would come from the wrong one.
    """
    from align.ppo.accelerator import enable_checkpointing

    networks = shared
    if recompute:
        enable_checkpointing(networks)
    networks.train()
    networks("value", sequences()).sum().backward()
    networks("policy", sequences()).logprobs.sum().backward()
    together = {n: p.grad.clone() for n, p in networks.named_parameters() if p.grad is not None}
    assert {n.split(".")[-2] for n in together if "lora_" in n} == {"default", "value"}

    for which, adapter in (("policy", "default"), ("value", "value")):
        networks.zero_grad()
        networks.policy.set_adapter(adapter)
        out = networks(which, sequences())
        (out.logprobs if which == "policy" else out).sum().backward()
        for name, parameter in networks.named_parameters():
            if parameter.grad is not None and f".{adapter}." in name:
                torch.testing.assert_close(together[name], parameter.grad, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------- processes

PROGRAM = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
import ppo_tiny

KINDS = {"full": {}, "lora": {"use_peft": True}, "trunk": {"use_peft": True, "lora_layers": 1}}

def gradients(out, rows, kind):
    settings = ppo_tiny.config(
        out.with_suffix(""), per_device_train_batch_size=rows, num_ppo_epochs=1, total_episodes=16,
        eval_steps=0, **KINDS[kind],
    )
    trainer = ppo_tiny.trainer(settings, eval_records=[])
    def keep(parameters, limit):
        inner = trainer.accelerator.unwrap_model(trainer.networks)
        if trainer.accelerator.is_main_process:
            found = {n: p.grad.clone() for n, p in inner.named_parameters() if p.requires_grad}
            save_file(found, out)
        return torch.tensor(1.0)
    trainer.accelerator.clip_grad_norm_ = keep
    trainer.train()

if __name__ == "__main__":
    for kind in KINDS:
        gradients(Path(sys.argv[1]) / f"2x8-{kind}.grads", 8, kind)
"""


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> Path:
    """Gradients of full training, of LoRA and of LoRA above a trunk, in one launch."""
    folder, tests = tmp_path_factory.mktemp("gradients"), Path(__file__).parents[1]
    (folder / "program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--standalone", str(folder / "program.py"), str(folder)]
    subprocess.run(launch, env=env, check=True, timeout=120, stderr=subprocess.DEVNULL)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "trunk"])
def test_two_processes_with_8_rows_have_the_gradient_of_one_with_16(
    of_two_processes, tmp_path, kind
):
    alone = {"__name__": "program"}
    exec(PROGRAM, alone)
    alone["gradients"](tmp_path / "1x16.grads", 16, kind)
    one = load_file(tmp_path / "1x16.grads")
    two = load_file(of_two_processes / f"2x8-{kind}.grads")
    assert one.keys() == two.keys() and any(g.abs().max() > 1e-3 for g in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-6, rtol=1e-5)
