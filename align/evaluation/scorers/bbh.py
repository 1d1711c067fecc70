"""BIG-Bench Hard: an answer after reasoning, read strictly and leniently (2210.09261, appendix).

Strict: the last "the answer is X", X exactly as the target. Lenient: without case and punctuation;
a target such as (B) is also met by the letter alone; without a statement the last line counts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from align.evaluation.results import Metric
from align.evaluation.scorers import common
from align.evaluation.scorers.common import Meaning, Row, Scores
from align.evaluation.scorers.multiple_choice import mean_of_groups

_STATED = re.compile(r"the answer is:?[ \t]+", re.IGNORECASE)
_LETTER = re.compile(r"\(([A-Z])\)")
MEANING = Meaning("Share of items whose text states exactly the right answer.", True)


def item(doc: Mapping[str, Any], results: Sequence[Any]) -> Scores:
    """Scores of one completion."""
    text, target = common.texts(results)[0], str(doc["answer"])
    found = stated(text)
    strict = float(found == target)
    lenient = float(same(found if found is not None else _last_line(text), target))
    return {
        "exact_match": strict,
        "flexible_match": lenient,
        "extraction_failure": float(found is None),
        "extraction_disagreement": float(strict != lenient),
    }


def stated(text: str) -> str | None:
    """What follows the last "the answer is", without the full stop of the sentence."""
    _, *found = _STATED.split(text)
    return found[-1].partition("\n")[0].strip().removesuffix(".").strip() if found else None


def same(said: str, target: str) -> bool:
    """Whether an answer means the target."""
    if _LETTER.fullmatch(target):
        letters = _LETTER.findall(said)
        return (letters[-1] if letters else _squeeze(said).upper()) == target[1]
    return _squeeze(said) == _squeeze(target)


def _squeeze(text: str) -> str:
    """Letters, digits and brackets' kinds only: case and sentence marks don't count."""
    return re.sub(r"[\s.,;:!?\"']+", " ", text.casefold()).strip(" ()*")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def metrics(rows: Sequence[Row]) -> dict[str, Metric]:
    """The exact match of each subject, and the mean of subjects that papers report."""
    return mean_of_groups(rows, "subject", "exact_match", MEANING)
