"""PPO over architectures: what holds for each of them, and which are refused with a message."""

import json
import math
from typing import Any

import ppo_tiny
import pytest
import tiny
import torch
from peft import LoraConfig
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from align import checkpoint
from align.checkpoint import quiet_peft
from align.config import RewardStage
from align.errors import CheckpointError, ConfigError
from align.ppo.adapters import add_adapters
from align.ppo.build import assemble
from align.ppo.models import causal_lm
from align.ppo.probe import check_model
from align.ppo.rewards import Rewards
from align.ppo.trainer import PPOTrainer
from align.scoring import RewardScorer

COMMON = {
    "vocab_size": len(ppo_tiny.tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
WINDOW = {**GROUPED, "sliding_window": 6}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 48}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}

HOLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "learned positions, tied embeddings": ("gpt2", {**COMMON, **GPT}),
    "parallel layers": ("gpt_neox", COMMON),
    "local attention": (
        "gpt_neo",
        {**COMMON, "num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "biases": ("qwen2", GROUPED),
    "softcaps": ("gemma2", {**WINDOW, "head_dim": 8}),
    "window in one of two layers": (
        "gemma3_text",
        {**WINDOW, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "window": ("mistral", WINDOW),
    "positions that begin at 2": ("opt", {**COMMON, "word_embed_proj_dim": 16, "ffn_dim": 64}),
    "head with bias": ("phi", COMMON),
    "falcon": ("falcon", COMMON),
    "alibi in a 2-D mask": ("falcon", {**COMMON, "alibi": True}),
    "alibi": ("bloom", {**COMMON, "n_layer": 2, "n_head": 4}),
    "scaled logits": ("cohere", {**GROUPED, "logit_scale": 0.25}),
    "experts": ("mixtral", {**GROUPED, "num_local_experts": 4}),
    "dropout read from the config": ("persimmon", COMMON),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "state": ("mamba", {**COMMON, "state_size": 4}, "where prompts are padded on the left"),
    "state and window": ("recurrent_gemma", {**GROUPED, "lru_width": 32}, "other probabilities"),
    "state beside attention": (
        "jamba",
        {**GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        "PPO can't sample from JambaForCausalLM with a cache of its own",
    ),
    "positions by the longest row": (
        "phi3",
        {**GROUPED, "original_max_position_embeddings": 48, "rope_parameters": LONG},
        "more than 48 tokens in a row .*set max_length: 48 or less",
    ),
    "no cache": ("openai-gpt", {**COMMON, **GPT}, "can't sample from OpenAIGPTLMHeadModel"),
}


def noisy(kind: str, values: dict[str, Any]) -> Any:
    """A random model with every dropout and jitter that its architecture knows switched on."""
    cls = CONFIG_MAPPING[kind]
    known = cls(**values).to_dict()
    noise = {
        name: 0.3
        for name, value in known.items()
        if ("drop" in name or "jitter" in name) and isinstance(value, float)
    }
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(cls(**{**values, **noise}))
    for name, parameter in lm.named_parameters():
        if parameter.dim() > 1 or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return lm


def networks(lm: Any, lora: bool) -> Any:
    if lora:
        target = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        with quiet_peft():
            lm = add_adapters(lm, target, seed=0)
    return assemble(lm, None, seed=0)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft corrects it for GPT-2
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # experts are no linear layers
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", HOLDS)
def test_the_first_pass_has_ratio_1_and_no_kl_whatever_the_architecture(tmp_path, kind, lora):
    """Prompts of different lengths in one batch, sampled, scored and trained on twice."""
    made = networks(noisy(*HOLDS[kind]), lora)
    settings = ppo_tiny.config(
        tmp_path, num_ppo_epochs=1, total_episodes=16, eval_steps=0, learning_rate=1e-2,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, use_peft=lora,
    )  # fmt: skip
    reward = Rewards({"vowels": (1.0, ppo_tiny.vowels)})
    trainer = PPOTrainer(
        settings, made, ppo_tiny.tokenizer(), reward, ppo_tiny.RECORDS, [], eos_token_ids=[1]
    )
    trainer.train()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert abs(first["kl"]) < 1e-5 < second["kl"]
    for line in (first, second):  # one optimizer step each: before it, policies are the same
        assert line["ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert line["ratio_max"] == pytest.approx(1, abs=1e-4)
        assert line["clipfrac"] == 0 and line["grad_norm"] > 0
        assert math.isfinite(line["loss/value"])


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_padding_would_change_is_refused(kind):
    model, values, message = REFUSED[kind]
    with pytest.raises(CheckpointError, match=message):
        check_model(networks(noisy(model, values), lora=False), max_length=64)


@pytest.mark.parametrize("kind", ["softcaps", "alibi", "window", "positions that begin at 2"])
def test_a_reward_model_of_any_of_them_scores_a_text_the_same_in_any_company(tmp_path, kind):
    """Saved, made a reward model of and loaded again, where sdpa is unknown with eager."""
    tokenizer = ppo_tiny.tokenizer()
    tokenizer.chat_template = tiny.PLAIN
    checkpoint.write_model(tmp_path / "sft", noisy(*HOLDS[kind]), tokenizer)
    stage = RewardStage(**ppo_tiny.STAGE, model_name_or_path=str(tmp_path / "sft"))
    made = checkpoint.new_reward_model(stage, checkpoint.load_tokenizer(str(tmp_path / "sft")))
    checkpoint.write_model(tmp_path / "reward", made, tokenizer)
    scorer = RewardScorer.load(str(tmp_path / "reward"), device="cpu")
    rows = scorer.encode(ppo_tiny.PROMPTS, ["yes, it is", "no", "", "maybe so", "ok", "x" * 30])
    alone = torch.cat([scorer.score_ids([row]) for row in rows])
    torch.testing.assert_close(scorer.score_ids(rows), alone, atol=1e-5, rtol=1e-5)
    assert alone.std() > 1e-2


def test_no_reward_model_can_be_made_without_a_scalar_head(tmp_path):
    lm = noisy("ctrl", {**COMMON, **GPT, "dff": 64})
    checkpoint.write_model(tmp_path, lm, ppo_tiny.tokenizer())
    stage = RewardStage(**ppo_tiny.STAGE, model_name_or_path=str(tmp_path))
    with pytest.raises(CheckpointError, match="CTRLForSequenceClassification has no scalar head"):
        checkpoint.new_reward_model(stage, ppo_tiny.tokenizer())


def test_a_bound_on_positions_that_the_run_keeps_is_none(tmp_path):
    model, values, _ = REFUSED["positions by the longest row"]
    check_model(networks(noisy(model, values), lora=False), max_length=48)


def test_the_saved_config_keeps_its_dropout():
    lm = noisy(*HOLDS["dropout read from the config"])
    networks(lm, lora=False)
    assert lm.config.attention_dropout == 0.3
    assert lm.base_model.layers[0].self_attn.config.attention_dropout == 0.0


def test_adapters_that_fit_nowhere_are_the_users_mistake():
    target = LoraConfig(r=2, target_modules=["nope"], task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match=r"Target modules.*nope.*correct lora_target_modules"):
        add_adapters(ppo_tiny.llama(), target, seed=0)


def test_nothing_of_the_check_stays(tmp_path):
    """Neither weights, nor the random state, nor the mode of the networks."""
    made = networks(ppo_tiny.llama(), lora=True)
    made.train()
    before = {n: p.clone() for n, p in made.state_dict().items()}
    random = torch.get_rng_state()
    check_model(made, 64)
    assert torch.equal(torch.get_rng_state(), random) and made.training
    assert all(torch.equal(p, before[n]) for n, p in made.state_dict().items())
    assert not causal_lm(made.policy).base_model._forward_hooks
