"""Answers of a model that were already computed: JSONL files that are only ever appended to.

The file is named by a fingerprint of all that decides an answer apart from the request (weights,
tokenizer, chat template, dtype, seed), so models can't be mixed up. A line holds the hash of one
request and its answer. A process killed in the middle of a line loses that line. Of several
processes each writes a file of its own, and reads those of all.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


class Responses:
    """The answers of one model; without a folder they are kept in memory only."""

    def __init__(self, folder: Path | None, fingerprint: dict[str, Any], process: int = 0) -> None:
        self.known: dict[str, Any] = {}
        self.file: TextIO | None = None
        self.watch: Callable[[int], object] | None = None  # told how many answers came
        if folder is not None:
            name = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
            folder.mkdir(parents=True, exist_ok=True)
            suffix = f"-{process}" if process else ""
            self.path = folder / f"{name[:32]}{suffix}.jsonl"
            for path in sorted(folder.glob(f"{name[:32]}*.jsonl")):
                self._read(path)
            self.file = self.path.open("a", encoding="utf-8")

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self.known[row["k"]] = row["v"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill
        if path == self.path and text and not text.endswith("\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def get(self, kind: str, request: Any) -> Any:
        """The answer to a request, None where it is not known."""
        return self.known.get(_key(kind, request))

    def learn(self, kind: str, request: Any, answer: Any) -> None:
        """Know an answer that another process keeps."""
        self.known.setdefault(_key(kind, request), answer)

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Keep an answer; lm-eval's models call this after each batch."""
        key = _key(kind, request)
        if key in self.known:
            return
        self.known[key] = answer
        if self.watch is not None:
            self.watch(1)
        if self.file is not None:
            self.file.write(json.dumps({"k": key, "v": answer}) + "\n")
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def _key(kind: str, request: Any) -> str:
    text = json.dumps([kind, list(request)], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
