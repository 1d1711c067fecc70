"""`align data …`, and the Hub cache without a network."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align import paths
from align.data import card_names, cli, load_card
from align.data.cards import read_card
from align.data.check import compute, facts_markdown, told_overlap
from align.data.overlap import ItemIndex
from align.data.sources import numbered_rows
from align.data.suites import task_items
from align.errors import DataError

CARD = """---
license: mit
align:
  kind: prompt-completion
  local: [{path: rows.jsonl}]
  columns: {prompt: q, completion: a}
---

# Mine

<!-- computed:start -->
nothing
<!-- computed:end -->

After.
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    rows = [
        {"q": "one plus one?", "a": "two"},
        {"q": "a secret", "a": "привет"},
        {"q": "", "a": "x"},
    ]
    rows.append(rows[0])
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "mine.md").write_text(CARD, encoding="utf-8")
    return tmp_path / "mine.md"


def test_list_says_what_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGN_DATA", str(tmp_path))
    lines: list[str] = []
    rows = {row["name"]: row for row in cli.list_cards(lines.append)}
    assert list(rows) == card_names() and len(lines) == len(rows)
    assert rows["quickstart_instructions"]["here"] and not rows["bbq"]["here"]


def test_check_writes_between_the_marks_and_nothing_else(mine: Path) -> None:
    found = cli.check(str(mine), write=True, log=lambda line: None)
    assert (found["rows"], found["valid"], found["duplicates"]) == (4, 3, 1)
    assert found["invalid"] == "empty prompt 1 (row 3)"
    assert found["lengths"]["completion"] == [3, 3, 6]
    assert found["non_latin"] == 1
    text = mine.read_text(encoding="utf-8")
    assert "- Rows: 4; valid: 3; invalid: empty prompt 1 (row 3)" in text
    assert text.startswith(CARD.partition("nothing")[0])
    assert text.endswith(CARD.partition("nothing")[2])
    cli.check(str(mine), write=True, log=lambda line: None)
    assert mine.read_text(encoding="utf-8") == text


def test_check_adds_the_marks_to_a_card_without_any(mine: Path) -> None:
    bare = CARD.replace("<!-- computed:start -->", "").replace("<!-- computed:end -->", "")
    mine.write_text(bare, encoding="utf-8")
    cli.check(str(mine), write=True, log=lambda line: None)
    text = mine.read_text(encoding="utf-8")
    assert text.startswith(bare.rstrip())
    assert "<!-- computed:start -->\n- Source read" in text
    cli.check(str(mine), write=True, log=lambda line: None)
    assert mine.read_text(encoding="utf-8") == text


def test_check_needs_marks(mine: Path) -> None:
    mine.write_text(CARD.replace("<!-- computed:end -->", ""), encoding="utf-8")
    with pytest.raises(DataError, match="lacks the lines <!-- computed:start -->"):
        cli.check(str(mine), write=True, log=lambda line: None)
    with pytest.raises(DataError, match="is a data file without a card"):
        rows = mine.parent / "good.jsonl"
        rows.write_text('{"prompt": "a"}\n', encoding="utf-8")
        cli.check(str(rows), write=True, log=lambda line: None)


def test_show_keeps_texts_back_unless_asked(mine: Path) -> None:
    lines: list[str] = []
    cli.show(str(mine), log=lines.append)
    assert "secret" not in "\n".join(lines)
    cli.show(str(mine), print_texts=True, log=lines.append)
    assert "secret" in "\n".join(lines)


def test_build(mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    assert cli.build(str(mine), out, log=lambda line: None)["records"] == 3
    first = json.loads(out.read_text(encoding="utf-8").splitlines()[0])
    assert (first["prompt"], first["answer"]) == ("one plus one?", "two")
    with pytest.raises(DataError, match="exists already; name another file"):
        cli.build(str(mine), out)
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "a": "b"}\n{', encoding="utf-8")
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        cli.build(str(mine), tmp_path / "other.jsonl")
    assert not list(tmp_path.glob("other*"))
    with pytest.raises(DataError, match="card of kind eval"):
        cli.build("bbq", tmp_path / "x")


def test_pull(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.pull(str(mine), log=lambda line: None) == "rows.jsonl"
    monkeypatch.delenv("ALIGN_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"is not under ALIGN_DATA .* get it from https://github.com"
    ):
        cli.pull("bbq")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE forbids the download"):
        cli.pull("ultrafeedback_binarized")


@pytest.mark.data
@pytest.mark.parametrize("name", ["hh_rlhf_harmless", "xstest", "copa"])
def test_computed_facts_are_current(name: str, align_data: Path) -> None:
    card = load_card(name)
    assert facts_markdown(card, compute(card)) in card.body


EMBEDDED = [n for n in card_names() if n.startswith("quickstart_")]


@pytest.mark.parametrize("name", [n for n in EMBEDDED if n != "quickstart_corpus"])
def test_computed_facts_of_the_embedded_data_are_current(name: str) -> None:
    card = load_card(name)
    current = facts_markdown(card, compute(card)) in card.body
    assert current, f"the world has changed: `align data check {name} --write`"


@pytest.mark.slow
def test_the_corpus_of_the_card_is_what_the_base_has_read() -> None:
    """Computing all its facts takes long; its documents are hashed, and some of them searched."""
    card = load_card("quickstart_corpus")
    lineage = json.loads((paths.QUICKSTART_BASE / "lineage.json").read_text())["data"][0]
    digest, first = hashlib.sha256(), []
    for number, row in numbered_rows(card):
        digest.update(row["text"].encode() + b"\n")
        if number <= 40_000:
            first.append([row["text"]])
    assert (number, digest.hexdigest()) == (lineage["rows"], lineage["sha256"])
    found = 0
    for task in card.align.overlap_with:
        items = task_items(task)
        hits = set().union(*ItemIndex([text for _, text in items]).hits(first))
        told = told_overlap(card, task)
        assert told is not None and {items[i][0] for i in hits} <= set(told)
        found += len(hits)
    assert found


def test_overlap_that_stays_in_is_told_item_by_item(tmp_path: Path) -> None:
    head = "---\nalign:\n  kind: prompt-only\n  local: [{path: a.jsonl}]\n  columns: {prompt: p}\n"
    (tmp_path / "a.jsonl").write_text('{"p": "x"}\n')
    elsewhere = "- Overlap with t: 9 records share text with 9 items: t-… 8, 9"
    body = f"---\n{elsewhere}\n<!-- computed:start -->\n"
    for said, expected in (
        ("0 records share text with 0 items", []),
        ("7 records share text with 2 items: t-… 004, 11", ["t-004", "t-11"]),
        ("7 records share text with 2 items: one, two", ["one", "two"]),
        ("not checked: no files", None),
    ):
        card = tmp_path / "c.md"
        card.write_text(f"{head}  overlap_with: [t]\n{body}- Overlap with t: {said}\n")
        assert told_overlap(read_card(card), "t") == expected
        assert told_overlap(read_card(card), "u") is None
    card.write_text(f"{head}  must_not_overlap: [t]\n{body}- Overlap with t: {said}\n")
    assert told_overlap(read_card(card), "t") == []


# ---------------------------------------------------------------- the Hub's cache

LOAD = (
    "import sys; from align.errors import run_main; from align.data import load_mixture\n"
    "def main():\n"
    "    m = load_mixture({sys.argv[1]: 1}, 'prompt-completion', seed=0)\n"
    "    print(len(m.train), m.lineage()[0]['source'])\n"
    "run_main(main)"
)


def run_offline(card: Path, home: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ALIGN_"))}
    env |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    args = [sys.executable, "-c", LOAD, str(card)]
    return subprocess.run(args, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_cached_hub_set_is_read_offline(tmp_path: Path) -> None:
    card = tmp_path / "cached.md"
    card.write_text(
        "---\nalign:\n  kind: prompt-completion\n"
        "  hub: {id: some/Set, data_dir: part, split: train, revision: not pinned}\n"
        "  columns: {prompt: q, completion: a}\n---\n",
        encoding="utf-8",
    )
    missing = run_offline(card, tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
    assert "some/Set is not in the Hugging Face cache" in missing.stderr

    repo = tmp_path / "hub" / "datasets--some--Set"
    commit = "0123456789abcdef" + "0" * 24
    folder = repo / "snapshots" / commit / "part"
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit, encoding="utf-8")
    for n in range(2):
        row = json.dumps({"q": f"q{n}", "a": "a"}) + "\n"
        (folder / f"train-0000{n}-of-00002.jsonl").write_text(row, encoding="utf-8")
    found = run_offline(card, tmp_path)
    assert found.stdout.strip() == (
        "2 some/Set (part, train; revision not pinned, read at 0123456789ab)"
    ), found.stderr

    (folder / "train-00001-of-00002.jsonl").unlink()
    half = run_offline(card, tmp_path)
    assert half.returncode == 2
    assert "some/Set is not in the Hugging Face cache" in half.stderr
