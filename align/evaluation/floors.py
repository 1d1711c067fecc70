"""What a scorer without knowledge must reach: random log-likelihoods through every task.

A random scorer that doesn't get chance shows a broken argmax, a leaked label, or choices that
are not what they seem (ten paraphrases of one answer among three, say).
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from align.evaluation import stats, suites
from align.evaluation.scorers import common

MOST_ITEMS = 2000
_SEVERAL_TASKS = 3.3  # stderrs: twenty tasks don't fail by chance
_CHOSEN_RIGHT = (
    "acc",
    "accuracy",
    "accuracy_ambiguous",
    "accuracy_disambiguated",
    "stereotype_preference_causal",
    "stereotype_preference",
    "stereotype_preferred",
    "stereotype_preference_mlm",
)
_OF_TWO = {name for name in _CHOSEN_RIGHT if name.startswith("stereotype_")}

Row = dict[str, Any]


def random_rows() -> list[Row]:
    """Random scorer against chance, for each multiple-choice task whose data are here."""
    rows = []
    for name, path in sorted(suites.task_files().items()):
        if "output_type: multiple_choice" not in path.read_text(encoding="utf-8"):
            continue
        try:
            task = suites.build(suites.TaskFile(name, path), chat=False, num_fewshot=0)
        except suites.MissingData as error:
            print(f"floor of {name} not run: {error}", file=sys.stderr)
            continue
        if len(task.doc_to_choice(task.eval_docs[0])) > 1:  # else nothing is chosen
            rows.append(random_row(name, task))
    return rows


def random_row(task_name: str, task: Any, seed: int = 0) -> Row:
    """Mean score of one random scorer against the mean chance of the same items."""
    rng = np.random.default_rng(seed)
    scores: list[float] = []
    chances: list[float] = []
    for i in range(min(MOST_ITEMS, len(task.eval_docs))):
        doc = task.eval_docs[i]
        count = len(task.doc_to_choice(doc))
        drawn = [(float(value), False) for value in -rng.exponential(20.0, count)]
        with np.errstate(divide="ignore"):  # lm-eval divides by the length of an empty choice
            scored = task.process_results(doc, drawn)
        name = next((n for n in _CHOSEN_RIGHT if common.known(scored.get(n))), None)
        if name is not None:
            scores.append(float(scored[name]))
            chances.append(0.5 if name in _OF_TWO else chance(doc, count))
    found = stats.mean_with_ci(scores, kind="t")
    expected = float(np.mean(chances))
    tolerance = _SEVERAL_TASKS * (found.stderr or 0.0)
    ours = found.value if found.value is not None else float("nan")
    return {
        "replay": f"floor/{task_name}/random",
        "published": round(expected, 4),
        "ours": round(ours, 4),
        "tolerance": round(tolerance, 4),
        "ok": abs(ours - expected) <= tolerance,
    }


def chance(doc: Mapping[str, Any], choices: int) -> float:
    """Chance of an item: one in its choices, or its share of true ones."""
    return int(doc["true"]) / choices if len(doc.get("mc2") or ()) == choices else 1 / choices
