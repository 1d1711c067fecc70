"""What lm-eval's own multiple-choice metrics lack: TruthfulQA's MC2, MMLU by subject."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.evaluation import stats
from align.evaluation.results import Metric
from align.evaluation.scorers import common
from align.evaluation.scorers.common import UNSCORED, Meaning, Row, Scores


def truthfulqa_mc2(doc: Mapping[str, Any], results: Sequence[Any]) -> Scores:
    """Probability of the true choices among all (2109.07958, appendix B: MC2)."""
    return {"acc": true_probability(common.loglikelihoods(results), int(doc["true"]))}


def true_probability(logprobs: Sequence[float], true: int) -> float:
    """Share of the probability on the first ``true`` choices; computed from the largest down."""
    values = np.array(logprobs, dtype=float)
    if np.isnan(values).any():
        return UNSCORED
    weights = np.exp(values - values.max())
    return float(weights[:true].sum() / weights.sum())


def by_subject(rows: Sequence[Row]) -> dict[str, Metric]:
    """MMLU: the accuracy of each subject, and the mean of subjects that its authors report."""
    meaning = Meaning("Share of items whose right answer is the likeliest choice.", True)
    return mean_of_groups(rows, "subject", "acc", meaning)


def mean_of_groups(rows: Sequence[Row], key: str, name: str, meaning: Meaning) -> dict[str, Metric]:
    """One score within each group, and its mean over groups that count the same."""
    groups = common.by_group(rows, key, name, meaning)
    scored = [value for value in common.column(rows, name) if common.known(value)]
    over = stats.mean_with_ci([m.value for m in groups.values()], kind="t")
    words = f"{meaning.text} Averaged over {key}s, which count the same; the interval is over them."
    mean = common.metric(over._replace(n=len(scored)), meaning._replace(text=words))
    return {f"{name}_mean_of_{key}s": mean, **groups}
