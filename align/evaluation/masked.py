"""Masked language models: the pseudo-log-likelihood of what two sentences share.

CrowS-Pairs (2010.00133, section 3): of two sentences that differ in a few tokens the shared ones
are masked one at a time, and their log-probabilities given all other tokens are added up. What
differs is never masked, so that the frequency of a group's name doesn't count.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch

from align.evaluation.responses import Responses

BOTH = "\x1f"  # between a sentence and the one that it is compared with
BATCH = 64


def shared(tokens: Sequence[int], other: Sequence[int]) -> list[int]:
    """Positions of the tokens that another sentence has as well, in the same order."""
    blocks = SequenceMatcher(None, tokens, other, autojunk=False).get_matching_blocks()
    return [block.a + i for block in blocks for i in range(block.size)]


@torch.inference_mode()
def pseudo_loglikelihood(model: Any, tokenizer: Any, sentence: str, other: str) -> float:
    """Sum of log P(token | all other tokens) over the tokens shared with another sentence."""
    ids, compared = (tokenizer(text)["input_ids"] for text in (sentence, other))
    special = set(tokenizer.all_special_ids)
    places = [i for i in shared(ids, compared) if ids[i] not in special]
    total = 0.0
    for start in range(0, len(places), BATCH):
        some = torch.tensor(places[start : start + BATCH])  # (B,)
        rows = torch.arange(len(some))
        masked = torch.tensor(ids).repeat(len(some), 1)  # (B, T)
        gold = masked[rows, some]
        masked[rows, some] = tokenizer.mask_token_id
        logits = model(input_ids=masked.to(model.device)).logits.float().cpu()  # (B, T, V)
        total += float(logits[rows, some].log_softmax(-1)[rows, gold].sum())
    return total


class MaskedModel:
    """Pseudo-log-likelihoods in the place of log-likelihoods."""

    kind = "masked"

    def __init__(self, model: Any, tokenizer: Any, responses: Responses) -> None:
        self.model, self.tokenizer, self.responses = model.eval(), tokenizer, responses

    @classmethod
    def load(cls, path: Path, device: str, responses: Responses) -> "MaskedModel":
        """From a checkpoint in Hugging Face layout."""
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        model = AutoModelForMaskedLM.from_pretrained(path, dtype=torch.float32)
        return cls(model.to(device), AutoTokenizer.from_pretrained(path), responses)

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """(pseudo-log-likelihood, False) of each sentence beside the one it is compared with."""
        for request in requests:
            kind, arguments = request.key()
            if self.responses.get(kind, arguments) is None:
                sentence, _, other = request.continuation.partition(BOTH)
                score = pseudo_loglikelihood(self.model, self.tokenizer, sentence, other)
                self.responses.add_partial(kind, arguments, (score, False))
        return [self.responses.get(*request.key()) for request in requests]
