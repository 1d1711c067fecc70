"""Masked language models: shared tokens, pseudo-log-likelihood by hand, the whole task."""

from pathlib import Path

import own_rows
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from align.errors import CheckpointError, EvalError
from align.evaluation import masked
from align.evaluation.run import evaluate

WORDS = ["the", "old", "young", "baker", "pilot", "singer", "farmer", "nurse"]
WORDS += ["guest", "is", "always", "slow", "."]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny random BERT of a dozen words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={w: i for i, w in enumerate([*special, *WORDS])})
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    tokenizer.save_pretrained(tmp_path / "bert")
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_what_two_sentences_share() -> None:
    assert masked.shared([1, 7, 3, 4], [1, 8, 3, 4]) == [0, 2, 3]
    assert masked.shared([1, 7, 9, 3], [1, 3]) == [0, 3]
    assert masked.shared([5], [6]) == []


def test_shared_tokens_are_masked_one_at_a_time(bert: Path) -> None:
    subject = masked.MaskedModel.load(bert, "cpu", masked.Responses(None, {}))
    model, tokenizer = subject.model, subject.tokenizer
    sentence, other = "the old baker is slow", "the young baker is slow"
    ids = tokenizer(sentence)["input_ids"]
    by_hand = 0.0
    for place in (1, 3, 4, 5):  # without [CLS], "old" and [SEP]
        one = list(ids)
        one[place] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([one])).logits[0, place]
        by_hand += float(logits.log_softmax(-1)[ids[place]])
    got = masked.pseudo_loglikelihood(model, tokenizer, sentence, other)
    assert got == pytest.approx(by_hand, abs=1e-5)
    assert got != pytest.approx(masked.pseudo_loglikelihood(model, tokenizer, other, sentence))
    assert masked.pseudo_loglikelihood(model, tokenizer, "old", "young") == 0


def test_the_task_from_end_to_end(bert: Path, tmp_path: Path, monkeypatch) -> None:
    own_rows.cards(tmp_path, monkeypatch)
    out = tmp_path / "out"
    found = evaluate(str(bert), ["crows_pairs_mlm"], output=out, log=lambda line: None)
    entry = found["tasks"]["crows_pairs_mlm"]
    assert entry["n"] == 6 and entry["unscored"] == 0
    preference = entry["metrics"]["stereotype_preference_mlm"]
    assert 0 <= preference["value"] <= 1
    assert entry["floors"]["random"] == pytest.approx(0.5, abs=0.15)
    again = evaluate(str(bert), ["crows_pairs_mlm"], output=out, log=lambda line: None)
    assert again["tasks"]["crows_pairs_mlm"]["metrics"] == entry["metrics"]
    with pytest.raises(EvalError, match=r"bbq is for causal .* BertForMaskedLM; evaluate it with"):
        evaluate(str(bert), ["bbq"], log=lambda line: None)


def test_masked_tasks_and_causal_models_don_t_mix(tmp_path: Path, monkeypatch) -> None:
    from evaluation_helpers import save

    own_rows.cards(tmp_path, monkeypatch)
    causal = save(tmp_path / "model")
    with pytest.raises(EvalError, match="crows_pairs_mlm is for masked language models, and"):
        evaluate(causal, ["crows_pairs_mlm"], log=lambda line: None)


def test_training_still_refuses_a_masked_model(bert: Path) -> None:
    from align.checkpoint import inspect_checkpoint

    with pytest.raises(CheckpointError, match="holds BertForMaskedLM; this needs a language"):
        inspect_checkpoint(bert, expect="causal")
