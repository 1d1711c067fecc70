"""Tiny networks, a character tokenizer and rule rewards for the tests of PPO."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align import checkpoint
from align.config import PPOStage, RewardStage
from align.ppo.build import build_networks
from align.ppo.rewards import Rewards, checked
from align.ppo.trainer import PPOTrainer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
PROMPTS = ["add two", "hi", "what is a cat?", "tell me more", "go", "a long prompt, is it not?"]
RECORDS = [{"prompt": p, "kind": "test", "id": str(i)} for i, p in enumerate(PROMPTS)]

LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8}
STAGE = {
    **LORA,
    "datasets": {"x": 1.0},
    "output_dir": "x",
    "learning_rate": 1.0,
    "per_device_train_batch_size": 1,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, <pad> and <eos> apart."""
    characters = ["<pad>", "<eos>", "<unk>", *string.ascii_lowercase, *" .,?!\n0123456789"]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


def llama(seed: int = 0, width: int = 32, layers: int = 2, **options: Any) -> LlamaForCausalLM:
    """A random Llama of about 25k parameters; its head is large enough for adapters below it."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        **options,
    )
    lm = LlamaForCausalLM(config)
    lm.lm_head.weight.data *= 8
    return lm


def random_adapter(model, seed: int):
    """As after some training."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def reward_adapter(folder: Path, sft: Path) -> Path:
    """A reward model as recipes/reward.py leaves it with LoRA."""
    tokenizer = checkpoint.load_tokenizer(str(sft))
    stage = RewardStage(**STAGE, model_name_or_path=str(sft))
    with checkpoint.quiet_peft():
        model = checkpoint.new_reward_model(stage, tokenizer)
        model = get_peft_model(model, checkpoint.lora_config(stage, "SEQ_CLS", model))
        model.get_base_model().config.score_offset = 0.25
        checkpoint.write_model(folder, random_adapter(model, 2), tokenizer)
    return folder


def vowels(records: Sequence[Any], completions: Sequence[str], ended: Sequence[bool]) -> Any:
    """Share of vowels in a completion."""
    return checked(
        "vowels", [sum(c in "aeiou" for c in t) / max(len(t), 1) for t in completions], completions
    )


def config(folder: Path, **options: Any) -> PPOStage:
    values: dict[str, Any] = {
        "model_name_or_path": "tiny",
        "datasets": {"tiny": 1.0},
        "output_dir": str(folder),
        "reward_functions": {"ppo_tiny:vowels": 1.0},
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "total_episodes": 16,
        "max_completion_length": 8,
        "max_length": 64,
        "truncated": "score",
        "lora_r": 4,
        "lora_alpha": 8,
    }
    return PPOStage(**{**values, **options})


def trainer(
    settings: PPOStage, *, reward: Any = vowels, seed: int = 0, **options: Any
) -> PPOTrainer:
    arguments: dict[str, Any] = {
        "train_records": RECORDS,
        "eval_records": RECORDS[:3],
        "eos_token_ids": [1],
        **options,
    }
    built = build_networks(settings, llama(seed), tokenizer())
    return PPOTrainer(settings, built, tokenizer(), Rewards({"vowels": (1.0, reward)}), **arguments)
