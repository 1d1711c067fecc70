"""Scores from a trained reward model, with its own tokenizer and template.

Only layer 2 and recipes import this module (it imports torch).
"""

import sys
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch

from align.checkpoint import eos_token_ids, load_reward_model
from align.data import render
from align.encoding import Messages, encode
from align.errors import CheckpointError, DataError
from align.streams import Streams

PROBES = (("How are you?", "I am fine."), ("What is 2 plus 3?", "5"), ("Tell me more.", "No."))


class RewardScorer:
    """``(prompts, completions) -> scores (B,)``: the head's output at the last real token.

    ``config.score_offset`` of the checkpoint is subtracted, so that samples of the policy that the
    reward model was centred on score 0 on average.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_tokens: int | None = None,
        rows: int | None = None,
    ) -> None:
        """``rows`` go through the model at once; None: as many as ``batch_tokens`` hold (None:
        more on a GPU than on a CPU, where padding costs more than a small batch).
        """
        self.model, self.tokenizer = model, tokenizer
        self.batch_tokens = batch_tokens or (2048 if model.device.type == "cpu" else 16_384)
        self.rows = rows
        self.eos_ids = eos_token_ids(model.config, tokenizer)
        self.offset = float(getattr(model.config, "score_offset", 0.0))
        text = model.config.get_text_config()
        bounds = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
        self.context = next((int(b) for b in bounds if b), sys.maxsize)  # BLOOM has none

    @classmethod
    def load(
        cls,
        path: str,
        *,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "RewardScorer":
        """Load a reward model, full or adapter.

        Raises:
            CheckpointError: no reward model, a head of the wrong size, or blind to EOS.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer = load_reward_model(
            path, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
        scorer = cls(model.to(device), tokenizer)
        scorer.check_eos(path)
        return scorer

    def check_eos(self, name: str) -> None:
        """Refuse a reward model whose score does not change when EOS is taken away.

        Raises:
            CheckpointError: the scores are the same to the last bits, or no numbers.
        """
        prompts, completions = map(list, zip(*PROBES, strict=True))
        ended = self(prompts, completions)
        cut = self(prompts, completions, ended=[False] * len(prompts))
        if not ended.isfinite().all():
            raise CheckpointError(
                f"the reward model {name} scores {ended[0]} for a short text: its weights are no "
                "finite numbers; train it again, with a lower learning_rate"
            )
        if (ended - cut).abs().max() <= 1e-6 * ended.abs().max().clamp(min=1e-3):
            raise CheckpointError(
                f"the reward model {name} is blind to EOS: it scores {ended[0]:.7f} with and "
                f"{cut[0]:.7f} without it; it was trained with PAD equal to EOS or with a template "
                "that writes none: train it again with recipes/reward.py"
            )

    def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str],
        ended: Sequence[bool] | None = None,
    ) -> torch.Tensor:
        """Scores (B,) in float32 on the CPU, in the order of the input.

        ``ended``: True where the completion ended by itself; its EOS is shown only then. Default:
        all did.

        Raises:
            DataError: a sequence is longer than the reward model's context.
        """
        return self.score_ids(self.encode(prompts, completions, ended))

    def encode(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str],
        ended: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """The tokens that the reward model reads."""
        ended = [True] * len(prompts) if ended is None else ended
        messages = [render.as_messages(prompt) for prompt in prompts]
        encoded = encode(self.tokenizer, messages, completions, self.eos_ids)
        return [
            e.prompt + (e.completion if whole else e.completion[:-1])
            for e, whole in zip(encoded, ended, strict=True)
        ]

    @cached_property
    def streams(self) -> Streams:
        """The model and its copies."""
        return Streams(self.model)

    def score_ids(self, rows: Sequence[Sequence[int]], padding: int = 0) -> torch.Tensor:
        """Scores (B,) of token sequences, in batches of similar length.

        ``padding``: PADs behind the longest of each batch, as far as the context allows.
        """
        scores = torch.zeros(len(rows))
        longest = max(map(len, rows), default=0)
        if longest > self.context:
            raise DataError(
                f"a sequence of {longest} tokens is longer than the reward model's context "
                f"({self.context}); shorten prompts or completions, or use another reward model"
            )
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        batches = []
        while order:
            size = self.rows or max(1, self.batch_tokens // len(rows[order[-1]]))
            batch, order = order[-size:], order[:-size]
            batches.append(batch)
        found = self.streams.map(
            partial(self._forward, padding=padding), [[rows[i] for i in batch] for batch in batches]
        )
        for batch, values in zip(batches, found, strict=True):
            scores[batch] = values
        return scores - self.offset

    @torch.no_grad()
    def _forward(self, model: Any, rows: list[Sequence[int]], *, padding: int) -> torch.Tensor:
        """Right-padded forward pass; raw scores (b,)."""
        longest, pad = max(map(len, rows)), self.model.config.get_text_config().pad_token_id
        length = min(longest + padding, self.context)
        ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
        real_mask = torch.tensor([[j < len(row) for j in range(length)] for row in rows])
        device = self.model.device
        output = model(
            input_ids=ids.to(device), attention_mask=real_mask.long().to(device), use_cache=False
        )
        return output.logits[:, 0].float().cpu()  # (b,)
