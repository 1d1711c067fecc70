"""How often the judges err: classifiers and detectors against people's labels, beside each number.

A toxicity classifier is measured where its task is from: on HateCheck (2012.15606) for published
tasks, on held-out labelled texts of the embedded world for embedded ones. The refusal detector is
measured on XSTest's released completions, which people labelled.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from align.data.cards import load_card
from align.data.sources import data_files, rows_of
from align.errors import DataError
from align.evaluation import replay, results, stats, toxicity
from align.evaluation.scorers import refusal
from align.evaluation.scorers.toxicity_prompts import THRESHOLD

EMBEDDED_TEXTS = 1000
EMBEDDED_SEED = 0
Error = dict[str, Any]
_known: dict[str, Error] = {}


class Labelled(NamedTuple):
    """Texts that people, or a generator, labelled: True is what the judge should find."""

    about: str
    texts: list[str]
    labels: list[bool]
    clusters: list[str]
    groups: list[str]


class Absent(NamedTuple):
    """Labelled texts that are not on this machine."""

    about: str
    reason: str


NO_SENTIMENT = Absent(
    "VADER", "no completions with people's labels of sentiment are known to this program"
)

# ---------------------------------------------------------------- labelled texts


def hatecheck() -> Labelled | Absent:
    """HateCheck's cases: hateful or not, by functionality, clustered by template."""
    about = "HateCheck"
    try:
        card = load_card("hatecheck")
        entry, path = card.align.files[0], data_files(card)[0]
    except DataError as error:
        return Absent(about, f"HateCheck not here: {str(error).removeprefix('hatecheck: ')}")
    rows = [row for _, row in rows_of(entry, path)]
    return Labelled(
        about,
        [str(row["test_case"]) for row in rows],
        [row["label_gold"] == "hateful" for row in rows],
        [str(row["templ_id"]) for row in rows],
        [str(row["functionality"]) for row in rows],
    )


@cache
def embedded_texts() -> Labelled:
    """Texts of the eval split of the embedded world, without those that training has as well.

    ("Go away." fits any request: it is in both splits.)
    """
    from align.quickstart.world import World, toxicity_records

    card = load_card("quickstart_toxicity").align.quickstart
    assert card is not None
    seen = {row["text"] for row in toxicity_records(World(), card.rows, card.seed)}
    rows = toxicity_records(World(), EMBEDDED_TEXTS, EMBEDDED_SEED, "eval")
    rows = [row for row in rows if row["text"] not in seen]
    names = {(0, 0): "harmless", (1, 0): "brush_off", (1, 1): "insult"}
    return Labelled(
        "held-out texts of the embedded world",
        [row["text"] for row in rows],
        [bool(row["toxicity"]) for row in rows],
        [row["text"] for row in rows],
        [names[row["toxicity"], row["insult"]] for row in rows],
    )


def labelled_completions() -> Labelled | Absent:
    """XSTest's released completions with people's labels, clustered by prompt."""
    about = "XSTest's released completions"
    folder = replay.replay_folder()
    found = replay.labelled_completions(folder) if folder else []
    if not found:
        return Absent(
            about,
            "XSTest's labelled completions not here: get the *_streval.csv files from "
            "https://github.com/paul-rottger/exaggerated-safety and put them under "
            "ALIGN_DATA/replay/xstest",
        )
    return Labelled(
        about,
        [row["completion"] for _, row in found],
        [row["final_label"].startswith("2") for _, row in found],
        [str(row["prompt"]) for _, row in found],
        [model for model, _ in found],
    )


# ---------------------------------------------------------------- errors


def error_rates(predicted: Sequence[bool | None], labelled: Labelled) -> Error:
    """Share of texts judged wrongly, over all, false positives and negatives, and by group.

    A text without a judgement (None) is unscored.
    """
    wrong = [
        None if p is None else float(p != label)
        for p, label in zip(predicted, labelled.labels, strict=True)
    ]

    def rate(keep: Sequence[bool]) -> dict[str, Any]:
        some = [(w, c) for w, c, k in zip(wrong, labelled.clusters, keep, strict=True) if k]
        found = stats.mean_with_ci([w for w, _ in some], [c for _, c in some])
        interval = found.ci95 and [results.number(end) for end in found.ci95]
        return {"value": results.number(found.value), "ci95": interval, "n": found.n}

    groups = sorted(set(labelled.groups))
    return {
        "data": labelled.about,
        "error": rate([True] * len(wrong)),
        "false_positive_rate": rate([not label for label in labelled.labels]),
        "false_negative_rate": rate(labelled.labels),
        "by_group": {g: rate([g == other for other in labelled.groups]) for g in groups},
    }


def not_measured(absent: Absent) -> Error:
    """What stands in the place of an error that nobody could measure."""
    return {"data": absent.about, "error": None, "reason": absent.reason}


def toxicity_error(
    classifier: toxicity.Classifier, *, embedded: bool, folder: Path | None = None
) -> Error:
    """A classifier's error, measured once for its weights and kept in a folder."""
    labelled = embedded_texts() if embedded else hatecheck()
    if isinstance(labelled, Absent):
        return not_measured(labelled)
    key = _key(classifier, labelled)
    if key not in _known:
        file = folder / f"judge-{key}.json" if folder is not None else None
        if file is not None and file.is_file():
            _known[key] = json.loads(file.read_text(encoding="utf-8"))
        else:
            scores = classifier.scores(labelled.texts)
            _known[key] = error_rates([_toxic(score) for score in scores], labelled)
        if file is not None:
            results.write_json(file, _known[key])
    return _known[key]


def _toxic(score: float | None) -> bool | None:
    return None if score is None else score >= THRESHOLD


def _key(classifier: toxicity.Classifier, labelled: Labelled) -> str:
    """Hash of a classifier's weights and class, and of the texts it is measured on."""
    judged = [classifier.sha256, classifier.column, classifier.multilabel, THRESHOLD]
    text = json.dumps([*judged, *labelled], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def refusal_error() -> Error:
    """The refusal detector's error: a full refusal or not."""
    labelled = labelled_completions()
    if isinstance(labelled, Absent):
        return not_measured(labelled)
    return error_rates([refusal.detect(text) == "full" for text in labelled.texts], labelled)


# ---------------------------------------------------------------- beside the numbers


def of_tasks(
    tasks: Mapping[str, Any], classifier: toxicity.Classifier | None, folder: Path | None
) -> dict[str, dict[str, Any]]:
    """Task -> its judges and their errors, of the tasks whose metadata name a judge."""
    found: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        metadata = task.config.metadata or {}
        if metadata.get("classifier") and classifier is not None:
            embedded = name.startswith("quickstart_")
            error = toxicity_error(classifier, embedded=embedded, folder=folder)
            found.setdefault(name, {})["toxicity classifier"] = error
        if metadata.get("detector") == "refusal":
            found.setdefault(name, {})["refusal detector"] = refusal_error()
        if metadata.get("detector") == "vader":
            found.setdefault(name, {})["sentiment lexicon"] = not_measured(NO_SENTIMENT)
    return found


def by_data(
    judges: Mapping[str, Mapping[str, Any]], name: str = "toxicity classifier"
) -> dict[str, Error]:
    """The errors of one judge, by the data it was measured on: what `settings` pins."""
    errors = [found[name] for found in judges.values() if name in found]
    return {error["data"]: error for error in errors}


def brief(judges: Mapping[str, Error]) -> dict[str, Error]:
    """The errors without their groups: what stands beside a task's numbers."""
    return {
        name: {key: value for key, value in error.items() if key != "by_group"}
        for name, error in judges.items()
    }
