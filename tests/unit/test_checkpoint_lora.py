"""Names in lora_target_modules, which peft passes over in silence where only some of them fit."""

import pytest
import tiny
from transformers import AutoModelForSequenceClassification

from align import checkpoint
from align.config import SFTStage
from align.errors import ConfigError

MODEL = tiny.llama(64, 1, 0)


def config(*targets: str) -> SFTStage:
    return SFTStage(
        model_name_or_path="m",
        datasets={"x": 1.0},
        output_dir="o",
        learning_rate=1e-3,
        per_device_train_batch_size=1,
        use_peft=True,
        lora_target_modules=list(targets),
    )


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["q_porj"], "names q_porj, which is no layer of LlamaForCausalLM; did you mean q_proj?"),
        (["q_proj", "nope"], "names nope, which is no layer of .*; it has .*q_proj, k_proj"),
        (["mlp"], "names mlp, which is a LlamaMLP, no linear layer"),
        (["norm"], "names norm, which is a LlamaRMSNorm, no linear layer"),
        (["proj"], "names proj, which is no layer"),
        ([], "lora_target_modules is empty; name layers, or leave it out"),
    ],
)
def test_a_name_that_stands_for_no_linear_layer_is_refused(targets, words):
    with pytest.raises(ConfigError, match=words):
        checkpoint.lora_config(config(*targets), "CAUSAL_LM", MODEL)


@pytest.mark.parametrize("targets", [["q_proj"], ["self_attn.q_proj", "down_proj"], ["lm_head"]])
def test_names_that_fit_are_taken(targets):
    made = checkpoint.lora_config(config(*targets), "CAUSAL_LM", MODEL)
    assert made.target_modules == set(targets)


def test_the_head_of_a_reward_model_is_trained_whole_and_takes_no_adapter(tmp_path):
    tiny.checkpoint(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    with pytest.raises(ConfigError, match="names score, which is no layer"):
        checkpoint.lora_config(config("score"), "SEQ_CLS", model)
    assert checkpoint.lora_config(config("q_proj"), "SEQ_CLS", model).modules_to_save == ["score"]
