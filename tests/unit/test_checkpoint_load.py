"""Tokenizers, policies and reward models as they are loaded: PAD, EOS, adapters, dtypes."""

import json

import pytest
import tiny
import torch

from align import checkpoint
from align.config import RewardStage, SFTStage
from align.errors import CheckpointError, ConfigError


def sft(model, **changes):
    values = {
        "model_name_or_path": str(model),
        "datasets": {"x": 1.0},
        "output_dir": "o",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "chat_template": "plain",
    }
    return SFTStage(**{**values, **changes})


def reward(model, **changes):
    values = {k: v for k, v in vars(sft(model)).items() if k in RewardStage.__dataclass_fields__}
    return RewardStage(**{**values, **changes})


def logits(model, ids=((5, 6, 7, 8),)):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids)).logits


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_a_new_pad_changes_nothing_else(tmp_path, pad):
    base = tiny.checkpoint(tmp_path, pad=pad)
    tokenizer = checkpoint.load_tokenizer(str(base), chat_template="plain")
    assert tokenizer.pad_token == "<pad>" and tokenizer.pad_token_id != tokenizer.eos_token_id
    model = checkpoint.load_policy(sft(base), tokenizer)
    old = checkpoint.inspect_checkpoint(base).vocab_size
    assert model.get_input_embeddings().weight.shape[0] == old + 1 == len(tokenizer)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == old
    bare = tiny.llama(old, 0, tiny.tokenizer(pad).pad_token_id)
    assert torch.equal(logits(model)[..., :old], logits(bare))
    assert (logits(model)[..., old] < logits(bare).amax(-1)).all(), "PAD is never the best token"


def test_eos_gets_a_gradient_where_it_was_pad(tmp_path):
    base = tiny.checkpoint(tmp_path, pad="<eos>", tie_word_embeddings=False)
    tokenizer = checkpoint.load_tokenizer(str(base), chat_template="plain")
    model = checkpoint.load_policy(sft(base), tokenizer)
    eos = tokenizer.eos_token_id
    model(input_ids=torch.tensor([[5, eos, 7]])).logits.square().sum().backward()
    assert model.get_input_embeddings().weight.grad[eos].abs().sum() > 0


def test_a_pad_that_exists_is_kept(tmp_path):
    base = tiny.checkpoint(tmp_path)
    tokenizer = checkpoint.load_tokenizer(str(base), chat_template="plain")
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 0)
    assert tokenizer.chat_template == tiny.PLAIN
    with pytest.raises(CheckpointError, match="no chat template"):
        checkpoint.load_tokenizer(str(base))
    assert checkpoint.load_tokenizer(str(base), need_template=False).chat_template is None


def test_missing_tokenizer(tmp_path):
    tiny.llama(50, 1, 0).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer can be loaded|no EOS token"):
        checkpoint.load_tokenizer(str(tmp_path), chat_template="plain")


def test_every_eos(tmp_path):
    tokenizer = tiny.tokenizer()
    model = tiny.llama(len(tokenizer), 1, 0)
    model.generation_config.eos_token_id = [7, 1]
    assert checkpoint.eos_token_ids(model, tokenizer) == [1, 7]
    assert checkpoint.eos_token_ids(model.generation_config, tokenizer) == [1, 7]
    assert checkpoint.eos_token_ids(None, tokenizer) == [1]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = checkpoint.load_causal(str(tmp_path))
    assert checkpoint.eos_token_ids(*loaded) == [1, 7]


def test_4bit_without_bitsandbytes(tmp_path):
    base = tiny.checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        checkpoint.load_policy(sft(base, load_in_4bit=True, use_peft=True), tiny.tokenizer())


def adapter(base, folder, tokenizer, seed, task="CAUSAL_LM"):
    """A LoRA adapter with random factors on ``base``, saved as a stage saves it."""
    from peft import get_peft_model

    make = checkpoint.load_policy if task == "CAUSAL_LM" else checkpoint.new_reward_model
    config = (sft if task == "CAUSAL_LM" else reward)(base, use_peft=True, lora_r=2)
    torch.manual_seed(seed)
    with checkpoint.quiet_peft():
        model = make(config, tokenizer)
        model = get_peft_model(model, checkpoint.lora_config(config, task, model))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    folder.mkdir()
    checkpoint.write_model(folder, model, tokenizer)
    return model.eval()


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_adapters_on_adapters(tmp_path, pad):
    base = tiny.checkpoint(tmp_path / "base", pad=pad)
    tokenizer = checkpoint.load_tokenizer(str(base), chat_template="plain")
    first = adapter(base, tmp_path / "first", tokenizer, 1)
    loaded = checkpoint.load_causal(str(tmp_path / "first"))
    assert torch.allclose(logits(loaded.model), logits(first), atol=1e-5)
    assert (
        not torch.allclose(
            logits(first), logits(checkpoint.load_causal(str(base)).model), atol=1e-3
        )
        or pad is None
    )
    second = adapter(tmp_path / "first", tmp_path / "second", tokenizer, 2)
    info = checkpoint.inspect_checkpoint(tmp_path / "second")
    assert info.kind == "adapter" and info.base == str(tmp_path / "first")
    assert info.has_chat_template and info.num_labels is None
    chained = checkpoint.load_causal(str(tmp_path / "second"))
    assert torch.allclose(logits(chained.model), logits(second), atol=1e-5)
    assert not torch.allclose(logits(second), logits(first), atol=1e-3)


def test_a_reward_adapter_with_its_head(tmp_path):
    base = tiny.checkpoint(tmp_path / "base", template=tiny.PLAIN)
    tokenizer = checkpoint.load_tokenizer(str(base))
    made = adapter(base, tmp_path / "rm", tokenizer, 3, task="SEQ_CLS")
    assert checkpoint.inspect_checkpoint(tmp_path / "rm", expect="reward").num_labels == 1
    tiny.edit_json(tmp_path / "rm" / "config.json", score_offset=0.25)
    loaded = checkpoint.load_reward_model(str(tmp_path / "rm"))
    assert torch.allclose(logits(loaded.model), logits(made), atol=1e-5)
    assert loaded.model.config.score_offset == 0.25
    with pytest.raises(
        CheckpointError, match="is a reward-model adapter; this stage needs a language"
    ):
        checkpoint.load_causal(str(tmp_path / "rm"))


def test_the_reward_head_is_drawn_as_published(tmp_path):
    base = tiny.checkpoint(tmp_path / "base", hidden_size=256, template=tiny.PLAIN)
    tokenizer = checkpoint.load_tokenizer(str(base))
    model = checkpoint.new_reward_model(reward(base), tokenizer)
    again = checkpoint.new_reward_model(reward(base), tokenizer)
    assert model.score.weight.shape == (1, 256) and model.config.num_labels == 1
    assert model.score.weight.std().item() == pytest.approx(257**-0.5, rel=0.15)
    assert torch.equal(model.score.weight, again.score.weight)
    other = checkpoint.new_reward_model(reward(base, seed=1), tokenizer)
    assert not torch.equal(model.score.weight, other.score.weight)


def test_a_saved_reward_model_is_a_plain_checkpoint(tmp_path):
    from transformers import AutoModelForSequenceClassification

    base = tiny.checkpoint(tmp_path / "base", template=tiny.PLAIN)
    tokenizer = checkpoint.load_tokenizer(str(base))
    model = checkpoint.new_reward_model(reward(base), tokenizer)
    (tmp_path / "rm").mkdir()
    checkpoint.write_model(tmp_path / "rm", model, tokenizer)
    tiny.edit_json(tmp_path / "rm" / "config.json", score_offset=1.5)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert torch.allclose(logits(plain), logits(model), atol=1e-6)
    assert plain.config.score_offset == 1.5
    assert "UserWarning" not in json.dumps(plain.config.to_dict())


def test_a_reward_model_with_pad_equal_to_eos_is_refused(tmp_path):
    base = tiny.checkpoint(tmp_path / "base", template=tiny.PLAIN)
    tokenizer = checkpoint.load_tokenizer(str(base))
    (tmp_path / "rm").mkdir()
    checkpoint.write_model(
        tmp_path / "rm", checkpoint.new_reward_model(reward(base), tokenizer), tokenizer
    )
    tiny.edit_json(tmp_path / "rm" / "config.json", pad_token_id=tokenizer.eos_token_id)
    with pytest.raises(CheckpointError, match="is blind to EOS"):
        checkpoint.load_reward_model(str(tmp_path / "rm"))


def test_stories260k_gets_a_pad(align_data):
    path = str(align_data / "models" / "stories260K-hf")
    tokenizer = checkpoint.load_tokenizer(path, chat_template="plain")
    model = checkpoint.load_policy(sft(path), tokenizer)
    assert tokenizer.pad_token_id == 512 and model.config.vocab_size == 513
    assert checkpoint.eos_token_ids(model, tokenizer) == [2, 1]


def test_saving_is_tried_before_training(tmp_path):
    from align.checkpoint.save import try_saving

    base = tiny.checkpoint(tmp_path / "base", pad=None)
    tokenizer = checkpoint.load_tokenizer(str(base), chat_template="plain")
    model = checkpoint.load_policy(sft(base), tokenizer)
    (tmp_path / "out").mkdir()
    try_saving(model, tokenizer)
    assert not any((tmp_path / "out").iterdir())
    model.generation_config.num_return_sequences = 3
    model.generation_config.do_sample = False
    model.generation_config.num_beams = 1
    with pytest.raises(CheckpointError, match=r"could not be saved after training"):
        try_saving(model, tokenizer)
