"""Averages of checkpoints: ends are the parents, the middle is the mean, misfits are refused."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_helpers import byte_tokenizer, save
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from align.checkpoint import load_causal, quiet_peft, write_model
from align.errors import CheckpointError, EvalError
from align.evaluation import averaging


def checkpoint(folder, value, shape=(3, 2)):
    folder.mkdir()
    save_file({"layer.weight": torch.full(shape, value)}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text("{}")
    (folder / "lineage.json").write_text('{"stage": "ppo", "weights_sha256": "x"}')
    return folder


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 1.0), (0.25, 2.0), (1.0, 5.0)])
def test_alpha_goes_from_the_first_to_the_second(tmp_path, alpha, expected):
    sft, ppo = checkpoint(tmp_path / "sft", 1.0), checkpoint(tmp_path / "ppo", 5.0)
    made = averaging.average(sft, ppo, alpha, tmp_path / "mixed")
    weights = load_file(str(made / "model.safetensors"))["layer.weight"]
    assert torch.equal(weights, torch.full((3, 2), expected))
    lineage = json.loads((made / "lineage.json").read_text())
    assert lineage["alpha"] == alpha
    assert [p["path"] for p in lineage["averaged"]] == ["../sft", "../ppo"]
    assert lineage["parent"] == lineage["averaged"][1]
    assert "weights_sha256" not in lineage
    assert averaging.is_average_of(made, sft, ppo, alpha)
    assert not averaging.is_average_of(made, ppo, ppo, alpha)
    assert (made / "config.json").is_file()


def test_misfits_are_refused(tmp_path):
    sft = checkpoint(tmp_path / "sft", 1.0)
    other = checkpoint(tmp_path / "other", 1.0, shape=(2, 2))
    with pytest.raises(CheckpointError, match=r"1 parameters differ .* layer\.weight"):
        averaging.average(sft, other, 0.5, tmp_path / "mixed")
    with pytest.raises(EvalError, match=r"alpha is 1\.5"):
        averaging.average(sft, sft, 1.5, tmp_path / "mixed")
    with pytest.raises(CheckpointError, match="exists already"):
        averaging.average(sft, sft, 0.5, sft)
    (tmp_path / "sft" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights \(model\.safetensors\)"):
        averaging.average(sft, other, 0.5, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_the_front_has_no_dominated_point():
    points = [
        {"name": "sft", "reward": 0.0, "lost": 0.0},
        {"name": "half", "reward": 1.5, "lost": 0.01},
        {"name": "bad", "reward": 1.0, "lost": 0.02},
        {"name": "ppo", "reward": 2.0, "lost": 0.1},
        {"name": "base", "reward": None, "lost": 0.0},
    ]
    assert [p["name"] for p in averaging.front(points)] == ["sft", "half", "ppo"]


def adapter_of(folder, base):
    """A LoRA adapter with weights that change what the base says."""
    torch.manual_seed(4)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet_peft():
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    write_model(folder, model, byte_tokenizer(chat=True))
    return folder


def test_adapters_are_merged_before_they_are_averaged(tmp_path):
    sft = Path(save(tmp_path / "sft", chat=True))
    ppo = adapter_of(tmp_path / "ppo", str(sft))
    made = averaging.average(sft, ppo, 0.25, tmp_path / "mixed")
    assert not (made / "adapter_config.json").exists()
    first, second, mixed = (
        load_causal(str(f)).model.state_dict() for f in (sft, ppo, tmp_path / "mixed")
    )
    moved = "model.layers.0.self_attn.q_proj.weight"
    assert (first[moved] - second[moved]).abs().max() > 0.1
    for name, weights in mixed.items():
        torch.testing.assert_close(weights, 0.75 * first[name] + 0.25 * second[name])
