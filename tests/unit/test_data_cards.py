"""Cards: every shipped one parses, wrong ones are refused with the cure."""

import hashlib
import json
from pathlib import Path

import pytest

from align import paths
from align.data import card_names, data_files, load_card, load_mixture
from align.data.cards import read_card
from align.data.records import TRAINING_KINDS
from align.data.suites import card_of_task, task_items, task_texts
from align.data.validate import first_records, validate_card
from align.errors import DataError

HEADINGS = (
    "Motivation",
    "Composition",
    "Provenance and collection",
    "Annotation",
    "Preprocessing",
    "Known bias",
    "Personal data",
    "Intended and unsuitable uses",
    "Licence",
    "Maintenance",
    "Computed",
)


def write_card(folder: Path, align: str, name: str = "mine") -> Path:
    path = folder / f"{name}.md"
    path.write_text(f"---\nlicense: mit\nalign:\n{align}---\n\n# Mine\n", encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


LOCAL = """  kind: prompt-completion
  local: [{path: rows.jsonl}]
  columns: {prompt: q, completion: a}
"""


def test_cards_of_ones_own_stand_in_a_folder_data_cards(tmp_path, monkeypatch) -> None:
    (tmp_path / "data_cards").mkdir()
    front = "---\nalign:\n  kind: eval\n  local:\n    - path: x.jsonl\n      text: [q]\n---\n"
    (tmp_path / "data_cards" / "capitals.md").write_text(front, encoding="utf-8")
    (tmp_path / "data_cards" / "x.jsonl").write_text('{"q": "Where?"}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "capitals" in card_names() and "bbq" in card_names()
    assert load_card("capitals").path == tmp_path / "data_cards" / "capitals.md"
    assert task_items("capitals") == [("1", "Where?")]


@pytest.mark.parametrize("name", card_names())
def test_every_shipped_card_is_complete(name: str) -> None:
    card = load_card(name)
    assert card.licence != "not provided"
    for key in ("pretty_name", "language", "task_categories", "size_categories"):
        assert card.front.get(key), key
    found = [line[3:] for line in card.body.splitlines() if line.startswith("## ")]
    assert tuple(found) == HEADINGS
    for task in card.align.must_not_overlap:
        card_of_task(task)


def test_every_card_is_named_once_in_the_index() -> None:
    index = (paths.DATA_CARDS / "README.md").read_text(encoding="utf-8")
    for name in card_names():
        assert index.count(f"[{name}]({name}.md)") == 1


@pytest.mark.parametrize(
    ("align", "message"),
    [
        ("  kind: preferences\n", r"kind is 'preferences'; it must be prompt-completion \| pref"),
        (LOCAL + "  transfrom: gsm8k\n", "align.transfrom is not a known key; did you mean transf"),
        (LOCAL + "  transform: gsm\n", "transform is 'gsm'; it must be one of columns, gsm8k"),
        (LOCAL + "  quickstart: {generator: corpus, rows: 3, seed: 0}\n", "exactly one of"),
        (LOCAL.replace("completion: a", "complection: a"), "complection is no field of prompt-com"),
        (LOCAL.replace(", completion: a", ""), "lacks answer or completion or messages"),
        (LOCAL.replace(".jsonl", ".doc"), "format of rows.doc is None; it must be one of jsonl"),
        (LOCAL.replace("local:", "files:"), "each of files needs its sha256"),
        ("  kind: preference\n  hub: {id: a/b, split: s}\n", "align.hub lacks revision"),
        ("  kind: eval\n  hub: {id: a/b, split: 3, revision: x}\n", "split is 3; it must be text"),
    ],
)
def test_wrong_cards_are_refused(tmp_path: Path, align: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_card(write_card(tmp_path, align))


def test_a_card_without_front_matter_or_block(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text("# no", encoding="utf-8")
    with pytest.raises(DataError, match="has no front matter"):
        load_card(path)
    path.write_text("---\na: [\n---\n", encoding="utf-8")
    with pytest.raises(DataError, match="not valid YAML"):
        load_card(path)
    path.write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    with pytest.raises(DataError, match="no block `align:`"):
        load_card(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8", "no data card 'gsm8': .* did you mean gsm8k"),
        ("no/such.jsonl", "no file at no/such.jsonl"),
        ("my.md", "no file at my.md"),
        ("someone/set", "for a Hub data set write a card with `hub: {id: someone/set"),
        (".", "is a folder; name a data file"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_card(name)


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    path = write_card(tmp_path, LOCAL)
    with pytest.raises(DataError, match=r"mine: no file rows.jsonl beside"):
        data_files(load_card(path))
    write_rows(tmp_path / "rows.jsonl", [{"q": "1+1?", "a": "2"}])
    assert data_files(load_card(path)) == [tmp_path / "rows.jsonl"]
    [record] = first_records(load_card(path), "prompt-completion", 5)
    assert (record["prompt"], record["answer"], record["card"]) == ("1+1?", "2", "mine")


def test_a_changed_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"q": "1+1?", "a": "2"}])
    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    align = LOCAL.replace(
        "local: [{path: rows.jsonl}]", f"files: [{{path: rows.jsonl, sha256: {digest}}}]"
    )
    card = read_card(write_card(tmp_path, align))
    monkeypatch.setenv("ALIGN_DATA", str(tmp_path))
    assert data_files(card) == [rows]
    rows.write_text('{"q": "1+1?", "a": "3"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl has sha256 .* the card says .* fetch it"):
        data_files(card)


def test_missing_data_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ALIGN_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(DataError, match=r"bias/bbq/Age.jsonl.gz.* is not under ALIGN_DATA \(which"):
        data_files("bbq")
    with pytest.raises(DataError, match="`HF_HUB_OFFLINE=0 align data pull gsm8k`"):
        load_mixture({"gsm8k": 1}, "prompt-completion", seed=0)
    with pytest.raises(DataError, match="HuggingFaceH4/ultrafeedback_binarized is not in the"):
        load_mixture({"ultrafeedback_binarized": 1}, "preference", seed=0)
    monkeypatch.setenv("ALIGN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"is not under ALIGN_DATA .*; get it from https://github"):
        data_files("strategyqa")


def test_wrong_kind() -> None:
    with pytest.raises(DataError, match="gsm8k holds prompt-completion records, this stage reads"):
        load_mixture({"gsm8k": 1}, "preference", seed=0)


def test_wrong_column(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"question": "1+1?", "a": "2"}])
    card = load_card(write_card(tmp_path, LOCAL.replace("q,", "questoin,")))
    with pytest.raises(DataError, match=r"no column 'questoin' .* did you mean question"):
        validate_card(card, "prompt-completion")


# ---------------------------------------------------------------- real data


EXPECTED = {"alpaca": 2, "hh_rlhf_harmless": 13, "hh_rlhf_harmless_prompts": 8}


@pytest.mark.data
@pytest.mark.parametrize(
    "name", [n for n in card_names() if load_card(n).align.files and load_card(n).kind != "eval"]
)
def test_real_data_become_records(name: str, align_data: Path) -> None:
    card = load_card(name)
    report = validate_card(card, card.kind)
    assert report.n_invalid == EXPECTED.get(name, 0), report.line()
    assert report.complete
    for record in first_records(card, card.kind, 20):
        if card.kind != "preference" and record["answer"]:
            assert "####" not in record["answer"] and "<<" not in record.get("reasoning", "")


@pytest.mark.data
@pytest.mark.parametrize("name", [n for n in card_names() if load_card(n).align.files])
def test_real_files_have_the_hashes_of_their_cards(name: str, align_data: Path) -> None:
    assert all(path.is_file() for path in data_files(name))


@pytest.mark.data
def test_real_items_have_texts(align_data: Path) -> None:
    tasks = [t for n in card_names() for t in load_card(n).tasks if load_card(n).align.files]
    assert "mmlu" in tasks
    for task in set(tasks) - {"mmlu"}:  # which takes longer than all others together
        texts = task_texts(task)
        assert len(texts) >= 100, task
        assert sum(not text.strip() for text in texts) == 0, task


@pytest.mark.data
def test_gsm8k_is_taken_apart(align_data: Path) -> None:
    first = first_records(load_card("gsm8k"), "prompt-completion", 1)[0]
    assert first["answer"] == "72"
    assert first["reasoning"].count("\n") == 1
    assert first["answer_format"] == "The answer is {answer}."


@pytest.mark.data
def test_hh_transcripts_become_messages(align_data: Path) -> None:
    for record in first_records(load_card("hh_rlhf_harmless"), "preference", 50):
        prompt = record["prompt"]
        if isinstance(prompt, list):
            assert prompt[-1]["role"] == "user" and prompt[0]["role"] == "user"
        assert "\n\nHuman:" not in str(prompt) + record["chosen"] + record["rejected"]


def test_training_kinds_have_cards() -> None:
    kinds = {load_card(name).kind for name in card_names()}
    assert set(TRAINING_KINDS) <= kinds
