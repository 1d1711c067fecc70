"""The items of the published tasks: the ``custom_dataset`` functions that evals/*.yaml name.

Each returns {split: rows}. Files come through their data card (ALIGN_DATA, checksum checked). Sets
that only the Hub has are in `hub_datasets`.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from align.data.cards import load_card
from align.data.sources import data_files, numbered_rows, rows_of
from align.errors import DataError
from align.evaluation.embedded import Items, read_jsonl

Row = dict[str, Any]
Splits = dict[str, Any]
_LETTERS = "ABCD"
_MARKS = re.compile(r"<<[^>]*>>")
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def from_card(
    card: str, config_source: str, fewshot_card: str | None = None, **_: Any
) -> dict[str, Items]:
    """Any set: the rows of the data cards that a task's metadata names, as they are.

    ``card`` gives the split ``test``, ``fewshot_card`` the split ``fewshot``. A path is relative to
    the task's YAML file. A row without a column ``id`` gets its number.
    """
    cards = {"test": card, "fewshot": fewshot_card}
    return {
        split: Items(
            {"id": str(number), **row}
            for number, row in numbered_rows(load_card(beside(name, config_source)))
        )
        for split, name in cards.items()
        if name
    }


def beside(card: str, config_source: str) -> str:
    """A card's path as seen from the folder of a task's YAML file; a name stays as it is."""
    path = Path(config_source).parent / Path(card).expanduser()
    return str(path) if path.is_file() else card


def bbq(card: str = "bbq", config_source: str = "", **_: Any) -> Splits:
    """BBQ: one row an item, clustered by question template; ``card``: of other categories."""
    return _test(
        {
            **row,
            "id": f"{row['category']}/{row['example_id']}",
            "cluster": f"{row['category']}/{row['question_index']}",
            "choices": [row[f"ans{i}"] for i in range(3)],
        }
        for _, row in _card_rows(beside(card, config_source))
    )


def crows_pairs(**_: Any) -> Splits:
    """CrowS-Pairs: pairs of sentences."""
    return _test(
        {
            "id": str(number),
            **{k: row[k] for k in ("sent_more", "sent_less", "stereo_antistereo", "bias_type")},
        }
        for number, (_, row) in enumerate(_card_rows("crows_pairs"))
    )


def winobias(**_: Any) -> Splits:
    """WinoBias: pro and anti versions of a sentence share their cluster."""
    lines = list(_card_rows("winobias"))
    people = {_person(_BRACKETS.findall(row["text"])[0]) for _, row in lines if row["text"].strip()}
    return _test(_wino(name, row["text"], people) for name, row in lines if row["text"].strip())


def realtoxicityprompts(**_: Any) -> Splits:
    """RealToxicityPrompts: prompts, toxic and not."""
    return _test(
        {
            "id": f"{row['filename']}:{row['begin']}",
            "text": row["prompt"]["text"],
            "prompt_kind": _stem(name),
            "prompt_toxicity": row["prompt"]["toxicity"],
        }
        for name, row in _card_rows("realtoxicityprompts")
    )


def xstest(**_: Any) -> Splits:
    """XSTest: 250 safe prompts and 200 unsafe contrasts."""
    return _test(
        {"id": row["id"], "text": row["prompt"], "label": row["label"], "type": row["type"]}
        for _, row in _card_rows("xstest")
    )


def gsm8k(**_: Any) -> Splits:
    """GSM8K without the calculator marks; worked examples from the training split."""
    return {
        "test": Items(_problem(i, r) for i, (_, r) in enumerate(_card_rows("gsm8k_test"))),
        "train": Items(_problem(i, r) for i, (_, r) in enumerate(_card_rows("gsm8k"))),
    }


def mmlu(**_: Any) -> Splits:
    """MMLU: 57 subjects in one set, the subject in words."""
    return _test(_mmlu("test"))


def mmlu_worked_examples(_: Any) -> list[Row]:
    """MMLU's dev split: five worked examples a subject."""
    return list(_mmlu("dev"))


def _mmlu(split: str) -> Iterable[Row]:
    rows = (row for _, row in _card_rows("mmlu") if Path(row["member"]).parent.name == split)
    for number, row in enumerate(rows):
        subject = Path(row["member"]).stem.removesuffix(f"_{split}").replace("_", " ")
        yield {**_lettered(number, row), "subject": subject}


def arc_easy(**_: Any) -> Splits:
    """ARC-Easy."""
    return _by_split("arc_easy")


def arc_challenge(**_: Any) -> Splits:
    """ARC-Challenge."""
    return _by_split("arc_challenge")


def piqa(**_: Any) -> Splits:
    """PIQA's validation split (the test labels are not public)."""
    goals = [row for name, row in _card_rows("piqa") if name.endswith("valid.jsonl")]
    labels = [row["text"] for name, row in _card_rows("piqa") if name.endswith(".lst")]
    return {
        "validation": Items(
            {"id": str(i), **row, "label": int(label)}
            for i, (row, label) in enumerate(zip(goals, labels, strict=True))
        )
    }


def lambada(**_: Any) -> Splits:
    """LAMBADA's test split; the last word is what is to be predicted."""
    return _test({"id": str(i), "text": r["text"]} for i, (_, r) in _numbered("lambada"))


def truthfulqa(**_: Any) -> Splits:
    """TruthfulQA: mc1 has one true choice, the first; mc2 all true and false ones."""
    return _test(
        {
            "id": str(row["id"]),
            "question": row["question"],
            "cluster": f"{row['category']}",
            "mc1": [row["best_answer"], *row["incorrect_answers"]],
            "mc2": [*row["correct_answers"], *row["incorrect_answers"]],
            "true": len(row["correct_answers"]),
        }
        for _, row in _card_rows("truthfulqa")
    )


def boolq(**_: Any) -> Splits:
    """BoolQ's validation split; items of one passage share their cluster."""
    return _gauntlet("boolq", cluster=lambda row: _digest(row["query"].split("\nQuestion:")[0]))


def openbookqa(**_: Any) -> Splits:
    """OpenBookQA's test split."""
    return _gauntlet("openbookqa")


def copa(**_: Any) -> Splits:
    """COPA's validation split, the connective in the query."""
    return _gauntlet("copa")


def winogrande(**_: Any) -> Splits:
    """WinoGrande's validation split: two contexts, one continuation."""
    return _test({"id": str(i), **row} for i, (_, row) in _numbered("winogrande"))


def counterfactual(config_source: str, groups: Mapping[str, Mapping[str, str]], **_: Any) -> Splits:
    """templates.jsonl beside the task's YAML, written for each group of each domain.

    A template has a context (for a base), a prompt (for a chat model) with ``{a}`` or ``{A}`` for
    the group, and completions by kind. Versions of one template in one domain are a set.
    """
    templates = read_jsonl(Path(config_source).parent / "templates.jsonl")
    return _test(
        {
            "id": f"{row['id']}/{kind}/{domain}/{group}",
            "set": f"{row['id']}/{kind}/{domain}",
            "template": row["id"],
            "domain": domain,
            "group": group,
            "kind": kind,
            "context": _swapped(row["context"], words),
            "prompt": _swapped(row["prompt"], words),
            "completion": completion,
        }
        for row in templates
        for kind, completion in row["completions"].items()
        for domain, members in groups.items()
        for group, words in members.items()
    )


def _swapped(template: str, words: str) -> str:
    return template.format(a=words, A=words[0].upper() + words[1:])


def each_prompt_once(rows: Any) -> Any:
    """Rows whose prompt no earlier row has: sets that differ in the completion only are one."""
    first: dict[str, int] = {}
    for number, prompt in enumerate(rows["prompt"]):
        first.setdefault(prompt, number)
    return rows.select(sorted(first.values()))


@cache
def truthfulqa_primer() -> str:
    """The six worked examples that TruthfulQA's prompt opens with, from the installed lm-eval.

    They are that project's text, and taking them from there keeps the prompt equal to its.
    """
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    from lm_eval.tasks._yaml_loader import load_yaml

    template = load_yaml(path)["doc_to_text"]
    found = re.search(r"prompt_qa\s*=\s*'(.*?)'\s*%}", template, re.DOTALL)
    if found is None:
        raise DataError(f"{path} has no primer: install the lm_eval that constraints.txt names")
    return found[1].replace("\\n", "\n").rstrip()


def truthfulqa_prompt(doc: Mapping[str, Any]) -> str:
    """TruthfulQA's standard prompt."""
    return f"{truthfulqa_primer()}\n\nQ: {doc['question']}\nA:"


# ---------------------------------------------------------------- one item


def _lettered(number: int, row: Mapping[str, str]) -> Row:
    """A question with the choices A to D."""
    return {
        "id": str(number),
        "question": row["question"],
        "choices": [row[letter] for letter in _LETTERS],
        "answer": _LETTERS.index(row["answer"].strip()),
    }


def _problem(number: int, row: Mapping[str, str]) -> Row:
    reasoning, _, answer = row["answer"].rpartition("####")
    return {
        "id": str(number),
        "question": row["question"],
        "reasoning": _MARKS.sub("", reasoning).strip(),
        "answer": answer.strip(),
    }


def _wino(name: str, line: str, people: set[str]) -> Row:
    """One sentence: who the pronoun is, and who else is in it."""
    number, _, marked = line.strip().partition(" ")
    person, pronoun = _BRACKETS.findall(marked)[:2]
    sentence = _BRACKETS.sub(r"\1", marked)
    gold = _person(person)
    others = [p for p in people if p != gold and re.search(rf"\b{re.escape(p)}\b", sentence)]
    if len(others) != 1:
        others = sorted(others, key=len)[-1:]
    stem = name.removesuffix(".dev").removesuffix(".test")
    kind, condition = stem.rpartition("_")[2].split(".")[0], stem.partition("_")[0]
    split = name.rpartition(".")[2]
    return {
        "id": f"{condition}/{kind}/{split}/{number}",
        "cluster": f"{kind}/{split}/{number}",
        "condition": condition,
        "kind": kind,
        "sentence": sentence,
        "pronoun": pronoun,
        "choices": sorted([gold, *others]),
        "label": sorted([gold, *others]).index(gold),
    }


def _person(text: str) -> str:
    """``The developer`` -> ``developer``."""
    return re.sub(r"^(?:the|a|an)\s+", "", text.strip(), flags=re.IGNORECASE)


# ---------------------------------------------------------------- rows of a card, of the Hub


def _card_rows(card_name: str) -> Iterable[tuple[str, Row]]:
    """(file name without .gz, row) of every file of a card, in the card's order."""
    card = load_card(card_name)
    entries = card.align.files + card.align.local
    for entry, path in zip(entries, data_files(card), strict=True):
        for _, row in rows_of(entry, path):
            yield path.name.removesuffix(".gz"), row


def _numbered(card_name: str) -> Iterable[tuple[int, tuple[str, Row]]]:
    return enumerate(_card_rows(card_name))


def _gauntlet(card_name: str, cluster: Any = None) -> Splits:
    """Rows {query, choices, gold}."""
    return _test(
        {"id": str(i), **row, "cluster": cluster(row) if cluster else str(i)}
        for i, (_, row) in _numbered(card_name)
    )


def _by_split(card_name: str) -> Splits:
    """Lettered questions whose file names end in the split."""
    names = {"train": "train", "val": "validation", "test": "test"}
    splits: dict[str, list[Row]] = {name: [] for name in names.values()}
    for name, row in _card_rows(card_name):
        rows = splits[names[_stem(name).rpartition("_")[2]]]
        rows.append(_lettered(len(rows), row))
    return {split: Items(rows) for split, rows in splits.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stem(name: str) -> str:
    return name.partition(".")[0]


def _test(rows: Iterable[Row]) -> Splits:
    return {"test": Items(rows)}
