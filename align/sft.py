"""Supervised fine-tuning with TRL's SFTTrainer: loss on the completion only, EOS trained."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import trl
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from align.callbacks import add_callbacks
from align.checkpoint import eos_token_ids, lora_config, quiet_peft
from align.data import render
from align.encoding import encode
from align.errors import DataError, is_main_process
from align.training import OurTrainer, arguments, say

IGNORED = -100
GREEN, DIM, PLAIN = "\033[32m", "\033[2m", "\033[0m"


class Tokenised(NamedTuple):
    """Records as tokens."""

    rows: list[dict[str, list[int]]]
    """``input_ids`` and ``labels`` (-100 on the prompt) of each record that is short enough."""
    overlong: int
    """Records longer than max_length, left out."""


def tokenise(
    records: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    reasoning: render.Reasoning,
    max_length: int,
    eos_ids: Sequence[int],
) -> Tokenised:
    """Rows for SFTTrainer; the last label of each is EOS.

    What is longer than ``max_length`` is left out: a cut completion would lose its EOS.
    """
    prompts = [render.prompt_messages(record) for record in records]
    completions = [render.completion_text(record, reasoning) for record in records]
    rows = [
        {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}
        for prompt, completion in encode(tokenizer, prompts, completions, eos_ids)
        if len(prompt) + len(completion) <= max_length
    ]
    return Tokenised(rows, len(records) - len(rows))


def show(rows: Sequence[Mapping[str, list[int]]], tokenizer: Any, count: int = 3) -> None:
    """A few rows on stderr: what is trained in green, what is only read dimmed."""
    if not is_main_process():
        return
    for row in rows[:count]:
        start = sum(label == IGNORED for label in row["labels"])
        read, trained = (
            tokenizer.decode(ids) for ids in (row["input_ids"][:start], row["input_ids"][start:])
        )
        dim, green, plain = (DIM, GREEN, PLAIN) if sys.stderr.isatty() else ("", "[trained:", "]")
        print(f"{dim}{read}{plain if dim else ''}{green}{trained}{plain}", file=sys.stderr)


class Trainer(OurTrainer, SFTTrainer):
    """TRL's SFTTrainer on rows that are tokenised already, in our order."""


def score_labels_only() -> None:
    """Let TRL's fused LM head skip positions without a label on CPUs too, as it does on GPUs.

    The loss is the same; a step is 1.2 times faster where 60% of the tokens are prompts. Elsewhere
    TRL scores every position, because it can't know that shapes may change for free.
    """
    trl.trainer.utils._use_triton = lambda device: True


def build_trainer(config: Any, model: Any, tokenizer: Any, mixture: Any) -> Trainer:
    """A trainer for a mixture (``.train`` and ``.eval``: prompt-completion records).

    Raises:
        DataError: every record is longer than max_length.
        CheckpointError: the chat template does not fit (`align.encoding.encode`).
    """
    eos = eos_token_ids(model, tokenizer)
    options = {"reasoning": config.reasoning, "max_length": config.max_length, "eos_ids": eos}
    train = tokenise(mixture.train, tokenizer, **options)
    held_out = tokenise(mixture.eval, tokenizer, **options)
    say(
        f"data: {len(train.rows)} records to train on, {len(held_out.rows)} held out; "
        f"{train.overlong + held_out.overlong} longer than {config.max_length} tokens left out"
    )
    if not train.rows:
        raise DataError(
            f"none of the {len(mixture.train)} records fits into max_length "
            f"{config.max_length}; raise it, or choose shorter data"
        )
    show(train.rows, tokenizer)
    score_labels_only()
    with quiet_peft():
        trainer = Trainer(
            model=model,
            args=SFTConfig(
                **arguments(config),
                max_length=config.max_length if config.packing else None,
                packing=config.packing,
                dataset_kwargs=None if config.packing else {"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list(train.rows),
            eval_dataset=Dataset.from_list(held_out.rows) if held_out.rows else None,
            processing_class=tokenizer,
            peft_config=lora_config(config, "CAUSAL_LM", model),
        )
    trainer.lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    trainer.groups = [[i] for i in range(len(trainer.lengths))]
    add_callbacks(trainer, config)
    return trainer
