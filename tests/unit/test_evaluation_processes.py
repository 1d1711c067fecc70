"""The same results however the work is cut: batch size, processes, a kill in the middle."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluation_helpers import save

from align.evaluation.processes import Team

SUITES = ("quickstart_bias", "quickstart_sums", "quickstart_toxicity")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("model"))


def command(model: str, output: Path, *more: str, limit: int = 12) -> list[str]:
    suites = [word for name in SUITES for word in ("--suite", name)]
    words = ["eval", "--model", model, *suites, "--limit", str(limit), "--output", str(output)]
    return [sys.executable, "-m", "align.cli", *words, *more]


def files(output: Path) -> dict[str, str]:
    """All that an evaluation wrote, without times."""
    found = json.loads((output / "results.json").read_text())
    found.pop("created")
    for entry in found["tasks"].values():
        entry.pop("wall_seconds")
    texts = {p.name: p.read_text() for p in sorted((output / "items").glob("*.jsonl"))}
    return {"results": json.dumps(found), **texts}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """One process, automatic batch size, never interrupted."""
    output = tmp_path_factory.mktemp("whole")
    subprocess.run(command(model, output), check=True, capture_output=True)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--batch-size", "1"), ("--processes", "2")], ids=" ".join)
def test_every_way_to_cut_the_work_gives_the_same_files(model, whole, tmp_path, more) -> None:
    ended = subprocess.run(
        command(model, tmp_path, *more), check=True, capture_output=True, text=True
    )
    assert files(tmp_path) == files(whole)
    assert ended.stdout.count("results: ") == 1
    caches = list((tmp_path / ".cache").glob("*.jsonl"))
    assert len(caches) == (2 if "--processes" in more else 1)
    assert all(cache.stat().st_size for cache in caches)


@pytest.mark.slow
def test_killed_at_a_random_item_and_resumed(model, whole, tmp_path) -> None:
    started = subprocess.Popen(
        command(model, tmp_path, "--batch-size", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stop_at = random.randrange(1, 120)  # of 36 + 12 + 96 answers
    answers = 0
    while answers < stop_at and started.poll() is None:
        time.sleep(0.01)
        answers = sum(p.read_text().count("\n") for p in tmp_path.glob(".cache/*.jsonl"))
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not (tmp_path / "results.json").exists()
    subprocess.run(command(model, tmp_path), check=True, capture_output=True)
    assert files(tmp_path) == files(whole), f"killed after {answers} answers"


def test_shares_cover_everything_once_and_keep_contexts_together() -> None:
    contexts = [f"{i % 37:03}" for i in range(200)]
    shares = [Team(rank, 3).share(contexts) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(200))
    assert all(50 < len(share) < 80 for share in shares)
    owners = {contexts[i]: rank for rank, share in enumerate(shares) for i in share}
    assert all(owners[contexts[i]] == rank for rank, share in enumerate(shares) for i in share)
    assert Team().share(contexts) == list(range(200))


def test_a_user_mistake_is_told_once_and_before_any_process_starts(tmp_path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "align.cli", "eval", "--suite", "biass", "--processes", "2"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("did you mean") == 1
