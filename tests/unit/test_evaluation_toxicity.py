"""Classifiers in Detoxify's format: right weights or an error, batches, and texts without text."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from align.errors import EvalError
from align.evaluation import embedded, judges, toxicity

WORDS = ["[PAD]", "[UNK]", "you", "fool", "thank", "kind"]


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


def checkpoint(folder, change=None, classes=("toxic", "insult"), **args):
    """A tiny BERT as Detoxify saves one."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        num_labels=len(classes),
    )
    model = BertForSequenceClassification(config)
    config.save_pretrained(folder / "encoder")
    tokenizer().save_pretrained(folder / "encoder")
    named = {
        "model_type": "encoder",
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "PreTrainedTokenizerFast",
        "num_classes": len(classes),
    }
    loaded = {
        "config": {"arch": {"args": named | args}, "dataset": {"args": {"classes": [*classes]}}},
        "state_dict": model.state_dict(),
    }
    if change:
        change(loaded)
    torch.save(loaded, folder / "tiny.ckpt")
    return folder / "tiny.ckpt"


@pytest.fixture
def no_canaries(monkeypatch):
    monkeypatch.setattr(toxicity, "CANARIES", ())


def test_the_embedded_classifier() -> None:
    found = toxicity.load_classifier("quickstart")
    kind, rude, nothing = found.scores(["I am happy to help you.", "Go away, you fool.", "  "])
    assert kind < 0.5 < rude
    assert nothing is None
    assert len(toxicity.describe(found)["sha256"]) == 64


def test_batches_change_nothing(tmp_path, no_canaries, monkeypatch) -> None:
    texts = ["you fool", "thank you kind you fool " * 9, "you", "kind", "", "you fool"]
    found = toxicity.load_classifier(str(checkpoint(tmp_path)))
    alone = [toxicity.load_classifier(str(tmp_path / "tiny.ckpt")).scores([t])[0] for t in texts]
    together = found.scores(texts)
    assert together[4] is None
    assert [x for x in together if x] == pytest.approx([x for x in alone if x], abs=1e-6)
    monkeypatch.setattr(toxicity, "BATCH_TOKENS", 1)
    again = toxicity.load_classifier(str(tmp_path / "tiny.ckpt")).scores(texts)
    assert [x for x in again if x] == pytest.approx([x for x in alone if x], abs=1e-6)
    assert found.scores([]) == []
    assert found.classes == ["toxicity", "insult"]


def test_weights_under_other_names_are_refused(tmp_path) -> None:
    def rename(loaded):
        weights = loaded["state_dict"]
        loaded["state_dict"] = {f"model.{k}": v for k, v in weights.items()}

    with pytest.raises(EvalError, match=r"don't fit BertForSequenceClassification: \d+ missing"):
        toxicity.load_classifier(str(checkpoint(tmp_path, rename)))


def test_canaries_catch_a_classifier_that_does_not_work(tmp_path) -> None:
    with pytest.raises(EvalError, match=r"gives '.*' 0\.\d+; it should give .* 0.5: its weights"):
        toxicity.load_classifier(str(checkpoint(tmp_path)))


def test_other_formats_are_refused(tmp_path) -> None:
    def without_classes(loaded):
        del loaded["config"]["dataset"]

    with pytest.raises(EvalError, match="is not in Detoxify's format: KeyError 'dataset'"):
        toxicity.load_classifier(str(checkpoint(tmp_path, without_classes)))
    with pytest.raises(EvalError, match=r"classes \['insult'\], but none called toxicity"):
        toxicity.load_classifier(str(checkpoint(tmp_path, classes=("insult",))))
    with pytest.raises(EvalError, match="needs the configuration and tokenizer 'nobody/nothing'"):
        toxicity.load_classifier(str(checkpoint(tmp_path, model_type="nobody/nothing")))
    (tmp_path / "text.ckpt").write_text("no tensors")
    with pytest.raises(EvalError, match="can't be read as a checkpoint of tensors"):
        toxicity.load_classifier(str(tmp_path / "text.ckpt"))


def test_code_in_a_checkpoint_is_not_run(tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (json.loads, ("1",))

    with pytest.raises(EvalError, match="can't be read as a checkpoint of tensors"):
        toxicity.load_classifier(str(checkpoint(tmp_path, lambda loaded: loaded.update(x=Trap()))))


def test_classifiers_that_are_not_here_are_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(url, file, progress):
        raise OSError("network is unreachable")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(EvalError, match=r"Detoxify checkpoint 'unbiased' is not at .*fetch https"):
        toxicity.load_classifier("unbiased")
    with pytest.raises(EvalError, match="no toxicity classifier 'nobody/nothing'"):
        toxicity.load_classifier("nobody/nothing")


def test_a_folder_in_hugging_face_layout(tmp_path, no_canaries) -> None:
    checkpoint(tmp_path)
    config = BertConfig.from_pretrained(tmp_path / "encoder")
    config.id2label = {0: "clean", 1: "toxic"}
    BertForSequenceClassification(config).save_pretrained(tmp_path / "hub")
    tokenizer().save_pretrained(tmp_path / "hub")
    found = toxicity.load_classifier(str(tmp_path / "hub"))
    (score,) = found.scores(["you fool"])
    assert 0 <= score <= 1
    assert found.column == 1
    assert not found.multilabel


def hub_folder(folder, **settings):
    """A classifier as the Hub holds one."""
    checkpoint(folder)
    config = BertConfig.from_pretrained(folder / "encoder")
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(folder / "hub")
    tokenizer().save_pretrained(folder / "hub")
    return str(folder / "hub")


def test_any_hub_classifier_by_the_label_that_means_toxic(tmp_path, no_canaries) -> None:
    path = hub_folder(tmp_path, id2label={0: "nothate", 1: "HATE", 2: "unsure"})
    with pytest.raises(
        EvalError, match=r"'unsure'\], but not exactly one called toxic or .*#LABEL"
    ):
        toxicity.load_classifier(path)
    with pytest.raises(EvalError, match=r"not exactly one called 'rude'"):
        toxicity.load_classifier(f"{path}#rude")
    hate, other = (toxicity.load_classifier(f"{path}#{c}") for c in ("hate", "nothate"))
    assert (hate.column, other.column, hate.multilabel) == (1, 0, False)
    assert hate.scores(["you fool"])[0] + other.scores(["you fool"])[0] < 1  # three classes
    assert hate.sha256 == other.sha256 and len(hate.sha256) == 64
    assert judges._key(hate, judges.embedded_texts()) != judges._key(other, judges.embedded_texts())


def test_other_weights_have_another_hash(tmp_path, no_canaries) -> None:
    one = toxicity.load_classifier(hub_folder(tmp_path, id2label={0: "clean", 1: "toxic"}))
    with torch.no_grad():
        one.model.classifier.bias += 1
    assert toxicity.weights_sha256(one.model) != one.sha256


def test_prompts_whose_replies_are_all_empty_are_unscored() -> None:
    with toxicity.using(toxicity.load_classifier("quickstart")):
        scores = embedded.toxicity({}, [["", " "]])
        assert scores["toxicity_probability"] is None
        assert scores["empty_rate"] == 1
        some = embedded.toxicity({}, [["Go away, you fool.", "", "Sure, my friend."]])
    assert some["toxicity_probability"] == 1
    assert some["toxicity_rate"] == 0.5
    assert some["empty_rate"] == pytest.approx(1 / 3)
    assert some["expected_max_toxicity_at_1"] < some["expected_max_toxicity"]
