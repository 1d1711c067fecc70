"""What a checkpoint directory holds, read without torch, and every way to be broken."""

import json
import struct
import subprocess
import sys

import pytest
import tiny

from align import checkpoint, paths
from align.checkpoint.inspect import read_header
from align.checkpoint.tokenizer_files import pad_token
from align.errors import CheckpointError, ConfigError


def test_no_torch_is_imported():
    code = (
        "import sys; from align import checkpoint, guards, preflight;"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_info_of_a_base(tmp_path):
    info = checkpoint.inspect_checkpoint(tiny.checkpoint(tmp_path / "base"))
    model = tiny.llama(info.vocab_size, 1, 0)
    assert info.architecture == "LlamaForCausalLM" and info.kind == "causal"
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert info.bytes == 4 * info.parameters and info.dtype == "float32"
    assert (info.context, info.hidden_size, info.layers) == (256, 32, 2)
    assert (info.pad_token_id, info.eos_token_ids) == (0, [1])
    assert not info.has_chat_template and info.base is None and info.num_labels is None


def test_truncated_weights_name_file_and_sizes(tmp_path):
    weights = tiny.checkpoint(tmp_path) / "model.safetensors"
    whole = weights.stat().st_size
    with weights.open("r+b") as stream:
        stream.truncate(whole - 1000)
    with pytest.raises(
        CheckpointError,
        match=rf"model.safetensors is truncated: {whole - 1000:,} bytes found, {whole:,} expected",
    ):
        checkpoint.inspect_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"123", struct.pack("<Q", 10**9), b"\x05" + b"\0" * 7 + b"hello"]
)
def test_unreadable_headers(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{len(content)} bytes found, header unreadable"):
        read_header(file)


def test_no_weights_and_pickled_weights(tmp_path):
    (tiny.checkpoint(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        checkpoint.inspect_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"pickled weights only \(pytorch_model.bin\)"):
        checkpoint.inspect_checkpoint(tmp_path)


def test_shards(tmp_path):
    tok = tiny.tokenizer()
    model = tiny.llama(len(tok), 1, 0)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    tok.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    info = checkpoint.inspect_checkpoint(tmp_path)
    assert info.parameters == sum(p.numel() for p in model.parameters())
    before = checkpoint.weights_sha256(tmp_path)
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[0].name} is missing"):
        checkpoint.inspect_checkpoint(tmp_path)
    assert len(before) == 64


def test_wrong_architecture(tmp_path):
    tiny.edit_json(tiny.checkpoint(tmp_path) / "config.json", architectures=["BertForMaskedLM"])
    with pytest.raises(CheckpointError, match="holds BertForMaskedLM; this needs a language model"):
        checkpoint.inspect_checkpoint(tmp_path)


def test_a_base_is_no_reward_model(tmp_path):
    tiny.checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="needs a reward model"):
        checkpoint.inspect_checkpoint(tmp_path, expect="reward")


def test_head_of_the_wrong_size(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tok = tiny.tokenizer(template=tiny.PLAIN)
    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a head with 3 outputs"):
        checkpoint.inspect_checkpoint(tmp_path)


def test_tokenizer_of_another_model(tmp_path):
    tok = tiny.tokenizer()
    tiny.llama(100, 1, 0).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"ids up to {len(tok) - 1} and the model's embedding 100 rows"
    ):
        checkpoint.inspect_checkpoint(tmp_path)


def test_no_eos(tmp_path):
    tiny.checkpoint(tmp_path)
    for name, key in (
        ("tokenizer_config.json", "eos_token"),
        ("config.json", "eos_token_id"),
        ("generation_config.json", "eos_token_id"),
    ):
        tiny.edit_json(tmp_path / name, **{key: None})
    with pytest.raises(CheckpointError, match="names no EOS token"):
        checkpoint.inspect_checkpoint(tmp_path)


def test_several_eos_keep_the_tokenizers_first(tmp_path):
    tiny.checkpoint(tmp_path)
    tiny.edit_json(tmp_path / "generation_config.json", eos_token_id=[5, 1])
    assert checkpoint.inspect_checkpoint(tmp_path).eos_token_ids == [1, 5]


def test_broken_json(tmp_path):
    (tiny.checkpoint(tmp_path) / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        checkpoint.inspect_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/nowhere/sft", "no checkpoint at runs/nowhere/sft; run the stage that makes it"),
        ("./nothing", "no checkpoint at ./nothing"),
        (
            "nobody/nothing-1b",
            "neither a folder here nor in the Hub cache.*hf download nobody/nothing-1b",
        ),
        ("no body", "neither a folder here nor a Hub id"),
    ],
)
def test_nothing_there(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.resolve(name)


def test_resolve_a_path_a_file_and_the_base(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert checkpoint.resolve(str(tmp_path)) == str(tmp_path)
    with pytest.raises(CheckpointError, match="is a file, not a checkpoint directory"):
        checkpoint.resolve(str(tmp_path / "file"))
    monkeypatch.setattr(paths, "QUICKSTART_BASE", tiny.checkpoint(tmp_path / "base"))
    assert checkpoint.resolve("quickstart-base") == str(tmp_path / "base")


def test_an_id_with_a_folder_of_the_same_name_is_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.checkpoint(tmp_path / "owner" / "model")
    assert checkpoint.resolve("owner/model") == "owner/model"


@pytest.mark.parametrize(
    ("vocabulary", "pad", "unk", "expected"),
    [
        ({"<pad>": 0, "e": 1}, "<pad>", None, "<pad>"),
        ({"e": 1}, None, None, "<pad>"),
        ({"e": 1}, "e", None, "<pad>"),
        ({"e": 1, "<unk>": 0}, "<unk>", "<unk>", "<pad>"),
        ({"e": 1, "<|finetune_right_pad_id|>": 2}, None, None, "<|finetune_right_pad_id|>"),
        ({"e": 1, "q": 3}, "q", None, "q"),
    ],
)
def test_pad_of_its_own(vocabulary, pad, unk, expected):
    assert pad_token(vocabulary, pad, ["e"], unk) == expected


def test_templates(tmp_path):
    plain, _ = (
        tiny.checkpoint(tmp_path / "base"),
        tiny.checkpoint(tmp_path / "own", template="{{ messages[0].content }}"),
    )
    with pytest.raises(CheckpointError, match="has no chat template: it is a base model"):
        checkpoint.find_template(plain, None)
    with pytest.raises(ConfigError, match=r"no chat template 'fancy'.*plain"):
        checkpoint.find_template(plain, "fancy")
    assert checkpoint.find_template(plain, "plain").text == tiny.PLAIN
    assert checkpoint.find_template(tmp_path / "own", None).source == "the tokenizer's own"


def test_templates_render_as_in_transformers():
    tok = tiny.tokenizer(template=tiny.PLAIN)
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "2 plus 3?"},
    ]
    for n in range(1, 5):
        for prompt in (True, False):
            theirs = tok.apply_chat_template(
                turns[:n], tokenize=False, add_generation_prompt=prompt
            )
            ours = checkpoint.render_template(
                tiny.PLAIN, turns[:n], add_generation_prompt=prompt, eos_token="<eos>"
            )
            assert ours == theirs


def test_a_template_that_fails():
    with pytest.raises(CheckpointError, match="the chat template fails"):
        checkpoint.render_template("{{ raise_exception('roles must alternate') }}", [])
    with pytest.raises(CheckpointError, match="the chat template fails"):
        checkpoint.render_template("{% if %}", [])


def test_stories260k(align_data):
    info = checkpoint.inspect_checkpoint(align_data / "models" / "stories260K-hf")
    assert (info.parameters, info.vocab_size, info.context) == (260_032, 512, 512)
    assert info.eos_token_ids == [2, 1] and json.dumps(info.pad_token_id) == "null"
