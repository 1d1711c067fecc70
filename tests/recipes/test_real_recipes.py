"""The recipes of real models, rehearsed: their YAML as shipped, on shrunken random-weight models.

What is replaced: the base, the data (local files in place of Hub sets), and how long it takes.
"""

import json
import math
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from align import checkpoint, paths
from align.strict_yaml import read_yaml

pytestmark = pytest.mark.slow

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
FEWER: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 2, "logging_steps": 1},
    "reward": {"max_steps": 2, "logging_steps": 1, "center_samples": 8, "center_max_new_tokens": 8},
    "ppo": {
        "total_episodes": 32,  # two rollouts: one that warms the critic up, one that trains both
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "critic_warmup_rollouts": 1,
        "max_completion_length": 12,
        "eval_prompts": 4,
    },
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def qwen(folder: Path) -> Path:
    """Like Qwen2.5-0.5B: tied embedding with rows to spare, PAD == EOS, a template of its own."""
    tokenizer = tiny.tokenizer(pad="<eos>", template=CHATML)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    eos = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = Qwen2Config(
        **SMALL,
        vocab_size=len(tokenizer) + 24,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
    )
    return stored(folder, Qwen2ForCausalLM(config).bfloat16(), tokenizer)


def llama(folder: Path) -> Path:
    """Like Llama 3.1 8B: untied, scaled rotary positions, a BOS, no PAD but a spare token, no
    template.
    """
    tokenizer = tiny.tokenizer(pad=None)
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>"})
    tokenizer.add_tokens(["<|finetune_right_pad_id|>"], special_tokens=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SMALL,
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    )
    return stored(folder, LlamaForCausalLM(config).bfloat16(), tokenizer)


def stored(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


BASES = {"qwen2.5-0.5b": qwen, "llama-3.1-8b": llama}
PADS = {"qwen2.5-0.5b": "<pad>", "llama-3.1-8b": "<|finetune_right_pad_id|>"}  # as the YAMLs say


@pytest.fixture(autouse=True)
def _precision_of_its_own() -> Iterator[None]:
    """Accelerate remembers the precision of a process; the tests after this one have another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A local file for each stage."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "sft": [{k: r[k] for k in ("prompt", "reasoning", "answer")} for r in tiny.sums(90)],
        "reward": [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in tiny.pairs(160)],
        "ppo": [{"prompt": r["prompt"]} for r in tiny.pairs(60, seed=1)],
    }
    for stage, records in rows.items():
        (folder / f"{stage}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return {stage: folder / f"{stage}.jsonl" for stage in rows}


def run(
    monkeypatch: pytest.MonkeyPatch, recipe: str, stage: str, replaced: dict[str, Any]
) -> dict[str, Any]:
    """One stage with the shipped YAML; returns the shipped values."""
    file = paths.CONFIGS / recipe / f"{stage}.yaml"
    flags = [word for k, v in replaced.items() for word in (f"--{k}", json.dumps(v))]
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", "--config", str(file), *flags])
    AcceleratorState._reset_state(reset_partial_state=True)
    runpy.run_path(str(paths.RECIPES / f"{stage}.py"))["main"]()
    return read_yaml(file)


def last_loss(folder: Path, name: str) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [float(row[name]) for row in rows if row.get(name) is not None][-1]


def has_learnt(folder: Path, parent: Path) -> bool:
    """Some weight moved: of an adapter the factor that starts at 0, else any."""
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        return any(w.any() for name, w in load_file(adapter).items() if "lora_B" in name)
    return checkpoint.weights_sha256(folder) != checkpoint.weights_sha256(parent)


@pytest.mark.parametrize("recipe", BASES)
def test_the_shipped_chain_runs_on_a_small_model_of_the_same_kind(
    recipe: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"sft": str(BASES[recipe](tmp_path / "base"))}
    before |= dict.fromkeys(("reward", "ppo"), str(tmp_path / "sft"))
    for stage, loss in {"sft": "loss", "reward": "loss", "ppo": "loss/policy"}.items():
        out = tmp_path / stage
        replaced = {
            "model_name_or_path": before[stage],
            "datasets": {str(data[stage]): 1.0},
            "output_dir": str(out),
            **FEWER[stage],
        }
        if stage == "ppo":
            replaced["reward_model"] = str(tmp_path / "reward")
        shipped = run(monkeypatch, recipe, stage, replaced)

        assert shipped["bf16"] and shipped["gradient_checkpointing"]
        assert math.isfinite(last_loss(out, loss))
        info = checkpoint.inspect_checkpoint(
            out, expect="reward" if stage == "reward" else "causal"
        )
        assert (info.kind == "adapter") == shipped.get("use_peft", False)
        assert info.pad_token_id is not None and info.pad_token_id not in info.eos_token_ids
        lineage = checkpoint.read_lineage(out)
        assert lineage["stage"] == stage
        assert lineage["parent"]["weights_sha256"] == checkpoint.weights_sha256(Path(before[stage]))
        assert lineage["chat_template_sha256"] == checkpoint.chat_template_sha256(tiny.PLAIN)
        assert checkpoint.load_tokenizer(str(out)).pad_token == PADS[recipe]
    sizes = [checkpoint.inspect_checkpoint(tmp_path / x).vocab_size for x in ("base", "sft")]
    assert sizes[0] == sizes[1], "the embedding had no room for PAD"
    assert json.loads((tmp_path / "reward/reward_report.json").read_text())["pairs"] > 0
    assert has_learnt(tmp_path / "ppo", tmp_path / "sft")
