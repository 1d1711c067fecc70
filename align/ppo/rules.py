"""Rewards that are rules: what a text says can be checked without any model.

For ``reward_functions``: ``{align.ppo.rules:final_answer: 1.0, align.ppo.rules:length: -0.01}``.
What a final answer is, `align.data.answers` alone defines: rewards and evaluation agree.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from align.data.answers import extract_answer, is_correct
from align.errors import DataError


def final_answer(
    prompts: Sequence[Any], completions: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[float]:
    """1 where a completion says the record's answer as its final one, else 0.

    Raises:
        DataError: a record without an answer, which nothing could be right about.
    """
    bare = next((record for record in records if record.get("answer") is None), None)
    if bare is not None:
        raise DataError(
            f"the record {bare.get('id')} of {bare.get('card')} has no answer to compare with; "
            "train on records that all have one, such as quickstart_sum_prompts or gsm8k"
        )
    return [
        float(is_correct(text, str(record["answer"]), strict=True))
        for text, record in zip(completions, records, strict=True)
    ]


def format(prompts: Sequence[Any], completions: Sequence[str], records: Any) -> list[float]:
    """1 where a completion marks some final answer ("The answer is N", "####"), else 0."""
    return [float(extract_answer(text, strict=True) is not None) for text in completions]


def length(prompts: Sequence[Any], completions: Sequence[str], records: Any) -> list[float]:
    """Words of a completion: a negative weight asks for short ones."""
    return [float(len(text.split())) for text in completions]
