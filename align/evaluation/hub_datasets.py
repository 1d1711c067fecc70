"""The items of published tasks whose data only the Hugging Face Hub has, through their cards.

Each function is a ``custom_dataset`` of evals/*.yaml and returns {split: rows}. A card with files
(``local``, or under ALIGN_DATA) is read from those instead, in the Hub's columns.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from align.data.cards import Card, load_card
from align.data.sources import data_files, files_there, numbered_rows, rows_of
from align.evaluation.embedded import Items

Row = dict[str, Any]
Splits = dict[str, Any]
_BRACKETED = re.compile(r"\[.*?\]")
STEREOSET_LABELS = ("anti-stereotype", "stereotype", "unrelated")  # the Hub's class numbers


def hellaswag(**_: Any) -> Splits:
    """HellaSwag's validation split (the test labels are not public), clustered by source."""
    return {
        "validation": Items(
            {
                "id": str(row["ind"]),
                "cluster": row["source_id"],
                "query": _plain(f"{row['activity_label']}: {_context(row)}"),
                "choices": [_plain(ending) for ending in row["endings"]],
                "label": int(row["label"]),
            }
            for row in _rows("hellaswag")
        )
    }


def _context(row: Mapping[str, Any]) -> str:
    return f"{row['ctx_a']} {row['ctx_b'].capitalize()}"


def _plain(text: str) -> str:
    """Without the marks that WikiHow left, as the standard prompt has it."""
    text = _BRACKETED.sub("", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def bbh(**_: Any) -> Splits:
    """BIG-Bench Hard: 27 subjects, each with its instruction."""
    return {
        "test": Items(
            {
                "id": f"{subject}/{number}",
                "subject": subject.replace("_", " "),
                "description": _worked(subject)["description"],
                "input": str(row["input"]),
                "target": str(row["target"]),
                "answer": str(row["target"]),
            }
            for subject, rows in _parts("bbh", bbh_subjects())
            for number, row in enumerate(rows)
        )
    }


def bbh_subjects() -> list[str]:
    """The names of the 27 subjects."""
    return sorted(path.stem for path in _bbh_folder().glob("[a-z]*.yaml"))


def bbh_worked_examples(_: Any) -> list[Row]:
    """Three worked examples a subject, by the authors of the set, from the installed lm-eval."""
    return [
        {"subject": subject.replace("_", " "), "description": "", **example}
        for subject in bbh_subjects()
        for example in _worked(subject)["fewshot_config"]["samples"]
    ]


@cache
def _worked(subject: str) -> dict[str, Any]:
    """What lm-eval's file of a subject holds: it is that project's text, not copied here."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(_bbh_folder() / f"{subject}.yaml"))


def _bbh_folder() -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks" / "bbh" / "cot_fewshot"


def simplesafetytests(**_: Any) -> Splits:
    """SimpleSafetyTests: prompts that should be refused, by area of harm."""
    return _test(
        {
            "id": str(row.get("id", number)),
            "text": row["prompt"],
            "label": "unsafe",
            "area": row.get("harm_area") or "unknown",
        }
        for number, row in enumerate(_rows("simplesafetytests"))
    )


def donotanswer(**_: Any) -> Splits:
    """Do-Not-Answer: questions that should be refused, by risk area, clustered by type of harm."""
    return _test(
        {
            "id": str(row["id"]),
            "cluster": row["specific_harms"],
            "text": row["question"],
            "label": "unsafe",
            "area": row["risk_area"],
        }
        for row in _rows("donotanswer")
    )


def stereoset(**_: Any) -> Splits:
    """StereoSet's intrasentence validation split."""
    return _test(_stereoset_item(row) for row in _rows("stereoset"))


def _stereoset_item(row: Mapping[str, Any]) -> Row:
    sentences = row["sentences"]
    if isinstance(sentences, Mapping):  # a column of lists; else a list of sentences
        keys = ("gold_label", "sentence")
        pairs = list(zip(*(sentences[key] for key in keys), strict=True))
    else:
        pairs = [(each["gold_label"], each["sentence"]) for each in sentences]
    by_label = {
        STEREOSET_LABELS[label] if isinstance(label, int) else label: text for label, text in pairs
    }
    return {
        "id": row["id"],
        "cluster": row["target"],
        "target": row["target"],
        "bias_type": row["bias_type"],
        "choices": [by_label[k] for k in ("stereotype", "anti-stereotype", "unrelated")],
    }


def winogender(**_: Any) -> Splits:
    """Winogender: all sentences; the Hub's part "gotcha" says which contradict the majority.

    Sentences with a neutral pronoun contradict no majority and have no such mark.
    """
    parts = dict(_parts("winogender", ["all", "gotcha"]))
    gotchas = {str(row["sentid"]) for row in parts["gotcha"]}
    return _test(
        {
            "id": str(row["sentid"]),
            "cluster": str(row["occupation"]),
            **{k: row[k] for k in ("sentence", "pronoun", "occupation", "participant", "gender")},
            "label": int(row["label"]),
            "gotcha": None if row["gender"] == "neutral" else str(row["sentid"]) in gotchas,
        }
        for row in parts["all"]
    )


def bold(**_: Any) -> Splits:
    """BOLD: beginnings of encyclopedia sentences about groups of people."""
    return _test(
        {
            "id": f"{row['category']}/{row['name']}/{i}",
            "cluster": f"{row['category']}/{row['name']}",
            "text": text,
            "domain": row["domain"],
            "group": row["category"],
        }
        for row in _rows("bold")
        for i, text in enumerate(row["prompts"])
    )


# ---------------------------------------------------------------- rows of a card


def _rows(card_name: str) -> Iterable[Row]:
    return (row for _, row in numbered_rows(load_card(card_name)))


def _parts(card_name: str, names: list[str]) -> Iterable[tuple[str, list[Row]]]:
    """(name, rows) of each configuration of a Hub set; of files, each named by its stem."""
    card = load_card(card_name)
    if files_there(card):
        entries = card.align.files + card.align.local
        for entry, path in zip(entries, data_files(card), strict=True):
            yield path.name.partition(".")[0], [row for _, row in rows_of(entry, path)]
        return
    for name in names:
        yield name, [row for _, row in numbered_rows(_configured(card, name))]


def _configured(card: Card, name: str) -> Card:
    hub = card.align.hub
    return replace(card, align=replace(card.align, hub=hub and replace(hub, config=name)))


def _test(rows: Iterable[Row]) -> Splits:
    return {"test": Items(rows)}
