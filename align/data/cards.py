"""Data cards: the registry of data sets.

``data_cards/<name>.md`` has a YAML front matter (the Hub's own keys, and one block ``align:``
that says where the data are and how a row becomes a record) and below it the text for people.
"""

import dataclasses
import difflib
import os
import types
import typing
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from align import paths
from align.data.readers import FORMATS, format_of
from align.data.records import Kind
from align.data.transforms import TRANSFORMS
from align.errors import DataError
from align.strict_yaml import strict_yaml

NOT_PINNED = "not pinned"


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """A data file: under ALIGN_DATA (block ``files``), or anywhere (block ``local``)."""

    path: str
    """Relative to ALIGN_DATA; in ``local`` relative to the card, or absolute."""
    sha256: str | None = None
    """Of the file as it is on disk."""
    format: str | None = None
    """One of jsonl, json, csv, tsv, parquet, text, csv.zip; default: by the file's name."""
    header: list[str] = field(default_factory=list)
    """Column names of a csv or tsv file without a header line."""
    task: str | None = None
    """Evaluation task that reads this file; default: the card's name."""
    text: list[str] = field(default_factory=list)
    """Columns (``a.b`` reaches inward) whose text training data must not contain."""


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A data set on the Hugging Face Hub."""

    id: str
    """``owner/name``."""
    split: str
    """Split to read."""
    revision: str
    """Commit hash, or ``not pinned``."""
    config: str | None = None
    """Configuration (subset)."""
    data_dir: str | None = None
    """Folder inside the repository."""


@dataclass(frozen=True, kw_only=True)
class QuickstartSource:
    """Records that the embedded world generates."""

    generator: str
    """A function of align.quickstart.world."""
    rows: int
    """How many records."""
    seed: int
    """Seed of the generator."""


@dataclass(frozen=True, kw_only=True)
class AlignBlock:
    """The block ``align:`` of a card's front matter."""

    kind: Kind
    """prompt-completion, preference, prompt-only, classification or eval."""
    files: list[FileSource] = field(default_factory=list)
    """Files under ALIGN_DATA; they are looked for first."""
    local: list[FileSource] = field(default_factory=list)
    """Files beside the card or at an absolute path."""
    hub: HubSource | None = None
    """Where the data are when no file is there."""
    quickstart: QuickstartSource | None = None
    """Generator of the embedded world."""
    upstream: str | None = None
    """Where people get the files of ``files``."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Field -> column, or columns that are joined by an empty line."""
    transform: str = "columns"
    """A function of align.data.transforms."""
    answer_format: str = "{answer}"
    """How a final answer is said."""
    must_not_overlap: list[str] = field(default_factory=list)
    """Evaluation tasks whose items may not be in the training data."""
    overlap_with: list[str] = field(default_factory=list)
    """Evaluation tasks whose overlap is counted and told, but not removed."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One data set: where it is, how it becomes records, and what people should know."""

    name: str
    path: Path
    align: AlignBlock
    front: dict[str, Any]
    """The Hub's own keys."""
    body: str
    """The text for people."""

    @property
    def kind(self) -> str:
        """Kind of its records."""
        return self.align.kind

    @property
    def licence(self) -> str:
        """Licence as the front matter states it."""
        return str(self.front.get("license_name") or self.front.get("license") or "not provided")

    @property
    def tasks(self) -> list[str]:
        """Evaluation tasks that read an eval card."""
        if self.kind != "eval":
            return []
        entries = self.align.files + self.align.local
        return sorted({entry.task or self.name for entry in entries})


# ---------------------------------------------------------------- finding


def card_names(folder: Path | None = None) -> list[str]:
    """Names of the cards in a folder; default: those that come with align, and ./data_cards."""
    folders = [folder] if folder else [paths.DATA_CARDS, Path.cwd() / "data_cards"]
    files = (path for place in folders for path in place.glob("*.md"))
    return sorted({path.stem for path in files} - {"README"})


def load_card(name_or_path: str | Path) -> Card:
    """The card of a name, of a ``.md`` file, or made for a data file by its columns.

    Raises:
        DataError: no such card or file, or a card that doesn't follow the format.
    """
    text = str(name_or_path)
    if text in card_names():
        return read_card(paths.data_card(text))
    path = Path(text).expanduser()
    if path.is_file() and path.suffix == ".md":
        return read_card(path)
    if path.is_file():
        from align.data.recognise import card_of_file

        return card_of_file(path)
    raise DataError(_no_card(text, path))


def _no_card(text: str, path: Path) -> str:
    if path.is_dir():
        return f"{text} is a folder; name a data file in it, or a data card (.md)"
    if path.suffix in (".md", ".gz") or format_of(text):
        return f"no file at {text} (looked in {Path.cwd()}); give an existing path"
    near = difflib.get_close_matches(text, card_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else "see `align data list`"
    if text.count("/") == 1:
        hint = (
            f"for a Hub data set write a card with `hub: {{id: {text}, …}}` (data_cards/README.md)"
        )
    return f"no data card {text!r}: neither a shipped card nor a file; {hint}"


# ---------------------------------------------------------------- reading


def read_card(path: Path) -> Card:
    """A card from its file, strictly.

    Raises:
        DataError: no front matter, an unknown key (with the nearest name), a wrong value.
    """
    front, body = split_front(path)
    if not isinstance(front.get("align"), dict):
        raise DataError(
            f"{path} has no block `align:` in its front matter; see data_cards/README.md"
        )
    block = _strict(AlignBlock, front.pop("align"), f"{path}: align")
    _check_block(block, path)
    return Card(name=path.stem, path=path, align=block, front=front, body=body)


def split_front(path: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a Markdown file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        raise DataError(f"{path} has no front matter; it must begin with `---`, YAML and `---`")
    try:
        front = strict_yaml(parts[1])
    except yaml.YAMLError as error:
        raise DataError(f"{path}: the front matter is not valid YAML: {error}") from error
    if not isinstance(front, dict):
        raise DataError(f"{path}: the front matter must be `key: value` lines")
    return front, parts[2]


def _check_block(block: AlignBlock, path: Path) -> None:
    """What types can't say: a source, formats, a transform, columns that a kind needs."""
    where = f"{path}: align"
    sources = [bool(block.files or block.hub), bool(block.local), bool(block.quickstart)]
    if sum(sources) != 1:
        raise DataError(f"{where}: give exactly one of files and/or hub, local, quickstart")
    for entry in block.files + block.local:
        form = entry.format or format_of(entry.path)
        if form not in FORMATS:
            raise DataError(
                f"{where}: format of {entry.path} is {form}; it must be one of {', '.join(FORMATS)}"
            )
    if block.files and not all(entry.sha256 for entry in block.files):
        raise DataError(f"{where}: each of files needs its sha256")
    if block.transform not in TRANSFORMS:
        raise DataError(
            f"{where}.transform is {block.transform!r}; it must be one of {', '.join(TRANSFORMS)}"
        )
    if "{answer}" not in block.answer_format:
        raise DataError(f"{where}.answer_format must hold {{answer}}")
    _check_columns(block, where)


FIELDS = {
    "prompt-completion": ("prompt", "messages", "reasoning", "answer", "completion"),
    "preference": ("prompt", "messages", "chosen", "rejected"),
    "prompt-only": ("prompt", "messages", "answer"),
    "classification": ("text", "label"),
    "eval": (),
}


def _check_columns(block: AlignBlock, where: str) -> None:
    known = [*FIELDS[block.kind], "kind"]
    if block.kind == "prompt-completion":
        known.append("answer_format")
    for name in block.columns:
        if name not in known and block.kind not in ("eval", "classification"):
            raise DataError(
                f"{where}.columns: {name} is no field of {block.kind}; {nearest(name, known)}"
            )
    needed = {
        "prompt-completion": [{"prompt", "messages"}, {"completion", "answer", "messages"}],
        "preference": [{"chosen"}, {"rejected"}],
        "prompt-only": [{"prompt", "messages"}],
    }.get(block.kind, [])
    for options in needed:
        if not options & set(block.columns):
            raise DataError(f"{where}.columns lacks {' or '.join(sorted(options))}")


def _strict(cls: type[Any], values: Any, where: str) -> Any:
    """An instance of one of the dataclasses above from YAML values; unknown keys are errors."""
    if not isinstance(values, dict):
        raise DataError(f"{where} must be `key: value` lines, got {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise DataError(f"{where}.{key} is not a known key; {nearest(str(key), list(hints))}")
    for f in fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise DataError(f"{where} lacks {f.name}; add `{f.name}: …`")
    return cls(**{k: _typed(v, hints[k], f"{where}.{k}") for k, v in values.items()})


def _typed(value: Any, hint: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _strict(typing.cast("type[Any]", hint), value, where)
    if origin is list and isinstance(value, list):
        return [_typed(item, options[0], f"{where}[{n}]") for n, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(k): _typed(v, options[1], f"{where}.{k}") for k, v in value.items()}
    if origin is Literal and value in options:
        return value
    if origin in (types.UnionType, typing.Union):
        for option in options:
            if option is type(None) and value is None:
                return None
            if dataclasses.is_dataclass(option) or option is type(value):
                return _typed(value, option, where)
            if typing.get_origin(option) is type(value):
                return _typed(value, option, where)
    elif type(value) is hint:
        return value
    wanted = " | ".join(map(str, options)) if origin is Literal else _type_name(hint)
    raise DataError(f"{where} is {value!r}; it must be {wanted}")


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_type_name(o) for o in typing.get_args(hint) if o is not type(None))
    return {str: "text", int: "a whole number"}.get(hint, str(hint))


def nearest(name: str, known: list[str]) -> str:
    """A hint for a name that is not known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def align_data() -> Path | None:
    """The folder that ALIGN_DATA names, None when it is unset."""
    folder = os.environ.get("ALIGN_DATA")
    return Path(folder).expanduser() if folder else None
