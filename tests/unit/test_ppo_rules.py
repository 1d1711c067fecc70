"""Rule rewards: the final answer as evaluation reads it, its form, and length."""

import pytest

from align.errors import DataError, RunError
from align.ppo import rules
from align.ppo.rewards import function_scorer

SUM = {"prompt": "What is 5 plus 3?", "answer": "8", "id": "a", "card": "sums"}
TEXTS = ["5 + 3 = 8. The answer is 8.", "The answer is 9.", "8", "The answer is 8. Or 9?"]


def test_the_final_answer_counts_where_it_is_marked_and_right() -> None:
    assert rules.final_answer([], TEXTS, [SUM] * 4) == [1, 0, 0, 1]


def test_the_form_counts_whether_right_or_not() -> None:
    assert rules.format([], TEXTS, []) == [1, 1, 0, 1]


def test_length_is_in_words() -> None:
    assert rules.length([], ["", "one", " two  words "], []) == [0, 1, 2]


def test_a_record_without_an_answer_is_an_error() -> None:
    with pytest.raises(DataError, match="record a of sums has no answer"):
        rules.final_answer([], ["8"], [{**SUM, "answer": None}])


@pytest.mark.parametrize("name", ["final_answer", "format", "length"])
def test_the_config_finds_them(name: str) -> None:
    score = function_scorer(f"align.ppo.rules:{name}", 5.0)
    assert score([SUM] * 4, TEXTS, [True] * 4).shape == (4,)


def test_the_error_reaches_the_run() -> None:
    score = function_scorer("align.ppo.rules:final_answer", 5.0)
    with pytest.raises(RunError, match="raised DataError: the record"):
        score([{"prompt": "x"}], ["8"], [True])
