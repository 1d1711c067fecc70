"""What can be computed about a card's data: counts, lengths, duplicates, hashes, overlap.

`align data check --write` puts the result between two marks in the card, so that no number there
is typed by hand.
"""

import hashlib
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.data.cards import Card
from align.data.overlap import ItemIndex
from align.data.records import TRAINING_KINDS, Record, content_id, content_texts, normalise
from align.data.sources import (
    data_files,
    file_sha256,
    files_there,
    numbered_rows,
    rows_of,
    source_name,
)
from align.data.suites import item_text, task_items
from align.data.transforms import text_of
from align.data.validate import Validation, pick, valid_records
from align.errors import DataError

START, END = "<!-- computed:start -->", "<!-- computed:end -->"
_TOLD = re.compile(
    r"^- Overlap with (\S+): \d+ records share text with (\d+) items(?:: (.+))?$", re.M
)


@dataclass
class Facts:
    """Computed facts about the data of one card."""

    source: str
    rows: int
    valid: int
    invalid: str
    duplicates: int
    kinds: dict[str, int]
    lengths: dict[str, list[int]]
    """Part -> median, 95th percentile and maximum, in characters."""
    non_latin: int
    """Records with letters outside the Latin script."""
    sha256: dict[str, str]
    """File -> hash; of a generator, hash of its records."""
    overlap: dict[str, str]
    """Evaluation task -> how many records share text with its items; and with which of them,
    where such records stay in."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compute(card: Card) -> Facts:
    """Read all rows of a card and compute what can be computed.

    Raises:
        DataError: the data are not here or broken.
    """
    validation = Validation(card.name)
    if card.kind in TRAINING_KINDS:
        records = [record for _, record in valid_records(card, card.kind, validation)]
        texts = [content_texts(record) for record in records]
        ids = [record["id"] for record in records]
        kinds = Counter(record["kind"] for record in records)
    else:
        texts, kinds = _plain_texts(card)
        validation.rows = len(texts)
        ids = ["\n".join(map(normalise, text)) for text in texts]
    return Facts(
        source=source_name(card),
        rows=validation.rows,
        valid=len(texts),
        invalid=validation.reasons() or "none",
        duplicates=len(ids) - len(set(ids)),
        kinds=dict(sorted(kinds.items())) if len(kinds) > 1 else {},
        lengths=_lengths(card.kind, texts),
        non_latin=sum(any(map(_non_latin, text)) for text in texts),
        sha256=_hashes(card, ids),
        overlap=_overlap(card, texts),
    )


def _plain_texts(card: Card) -> tuple[list[list[str]], Counter[str]]:
    """The texts of eval and classification rows, and rows by task or label."""
    if card.kind == "eval" and not card.align.quickstart:
        entries = card.align.files + card.align.local
        texts, tasks = [], Counter[str]()
        for entry, path in zip(entries, data_files(card), strict=True):
            for _, row in rows_of(entry, path) if entry.text else ():
                texts.append([item_text(row, entry)])
                tasks[entry.task or card.name] += 1
        return texts, tasks
    rows = [row for _, row in numbered_rows(card)]
    picked = [pick(row, card.align.columns) if card.align.columns else row for row in rows]
    labels = Counter(f"label {row['label']}" for row in picked if "label" in row)
    return [[text_of(row, "text")] for row in picked], labels


def _lengths(kind: str, texts: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    names = {
        "preference": ("prompt", "chosen", "rejected"),
        "prompt-completion": ("prompt", "completion"),
    }
    parts = names.get(kind, ("text",) if kind in ("eval", "classification") else ("prompt",))
    return {
        part: _quantiles([len(text[n]) for text in texts]) for n, part in enumerate(parts) if texts
    }


def _quantiles(values: Sequence[int]) -> list[int]:
    ordered = sorted(values)
    return [int(statistics.median(ordered)), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]]


def _non_latin(text: str) -> bool:
    """Letters outside Latin blocks: a coarse sign of other languages, not their recognition."""
    return not text.isascii() and any(c.isalpha() and ord(c) > 0x24F for c in text)


def _hashes(card: Card, ids: Sequence[str]) -> dict[str, str]:
    entries = card.align.files + card.align.local
    if files_there(card):
        paths = data_files(card)
        stats = [path.stat() for path in paths]
        return {
            entry.path: file_sha256(path, stat.st_size, stat.st_mtime_ns)
            for entry, path, stat in zip(entries, paths, stats, strict=True)
        }
    return {"content": hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()}


def _overlap(card: Card, texts: Sequence[Sequence[str]]) -> dict[str, str]:
    """One pass over the texts for the items of all tasks that the card names."""
    found: dict[str, str] = {}
    items: list[tuple[str, str, str]] = []
    for task in (*card.align.must_not_overlap, *card.align.overlap_with):
        try:
            items += [(task, name, text) for name, text in task_items(task)]
            found[task] = ""
        except DataError as error:
            found[task] = f"not checked: {error}"
    records: Counter[str] = Counter()
    hit: set[int] = set()
    for hits in ItemIndex([text for *_, text in items]).hits(texts):
        records.update({items[i][0] for i in hits})
        hit |= hits
    for task in (task for task, said in found.items() if not said):
        names = [items[i][1] for i in sorted(hit) if items[i][0] == task]
        which = _told(task, names) if names and task in card.align.overlap_with else ""
        found[task] = f"{records[task]} records share text with {len(names)} items{which}"
    return found


def _told(task: str, names: Sequence[str]) -> str:
    """Ids of items, without the name of the task that all of them may begin with."""
    head = f"{task}-"
    if not all(name.startswith(head) for name in names):
        return f": {', '.join(names)}"
    return f": {head}… {', '.join(name.removeprefix(head) for name in names)}"


def told_overlap(card: Card, task: str) -> list[str] | None:
    """Items of a task that share text with the data of a card, as its computed facts tell.

    None where nobody counted. Of tasks in `must_not_overlap` no item is left: training drops the
    records.
    """
    if task in card.align.must_not_overlap and card.kind in TRAINING_KINDS:
        return []
    if task not in card.align.overlap_with:
        return None
    _, _, facts = card.body.partition(START)
    for name, count, ids in _TOLD.findall(facts):
        if name == task:
            head, _, rest = ids.rpartition("… ")
            return [head + item for item in rest.split(", ")] if int(count) else []
    return None


# ---------------------------------------------------------------- as text


def facts_markdown(card: Card, facts: Facts) -> str:
    """The facts as a Markdown list."""
    compared = " (of the text columns)" if card.kind in ("eval", "classification") else ""
    lines = [
        f"- Source read: {facts.source}",
        f"- Rows: {facts.rows}; valid: {facts.valid}; invalid: {facts.invalid}",
        f"- Exact duplicates{compared}: {facts.duplicates}; near duplicates: not computed",
    ]
    if facts.kinds:
        lines.append("- By kind: " + ", ".join(f"{k} {n}" for k, n in facts.kinds.items()))
    for part, (median, p95, top) in facts.lengths.items():
        lines.append(f"- Characters of the {part}: median {median}, 95% {p95}, longest {top}")
    lines.append(
        f"- Records with letters outside the Latin script: {facts.non_latin}; "
        "languages: not computed"
    )
    lines += [f"- sha256 of {name}: `{digest}`" for name, digest in facts.sha256.items()]
    lines += [f"- Overlap with {task}: {said}" for task, said in facts.overlap.items()]
    return "\n".join(lines)


def write_facts(path: Path, markdown: str) -> None:
    """Put the facts between the marks of a card; a card without marks gets them at its end.

    Raises:
        DataError: the card has one mark and not the other.
    """
    text = path.read_text(encoding="utf-8")
    if START not in text and END not in text:
        text = f"{text.rstrip()}\n\n## Computed\n\n{START}\n{END}\n"
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise DataError(f"{path} lacks the lines {START} and {END}; add them where facts should go")
    path.write_text(f"{before}{start}\n{markdown}\n{end}{after}", encoding="utf-8")


def example_lines(record: Record, with_texts: bool) -> list[str]:
    """One record for people; its texts only where somebody asked to see them."""
    texts = content_texts(record)
    if with_texts:
        return [f"--- {content_id(record)} ({record['kind']})", *texts]
    sizes = " + ".join(str(len(text)) for text in texts)
    return [f"{content_id(record)} ({record['kind']}): {sizes} characters"]
