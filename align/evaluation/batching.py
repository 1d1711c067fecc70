"""Batches as large as memory allows, and smaller ones when it does not.

A row's numbers must not depend on the batch that it is in: neither on its size, nor on what a
killed run had answered before, nor on how many processes share the work. Two things make them:
attention adds up in another order when rows are padded to another length, and a matrix product
takes another path below 16 rows (MKL, float32: measured for widths of 64 to 4,096). So rows are
padded to a length that follows from their own (`padded_length`), only rows of one shape share a
batch (`by_shape`), and small batches get company (`with_company`). Then results are equal bit by
bit on CPUs; libraries for GPUs choose by the whole shape, and results differ there by rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch

from align.errors import RunError

T = TypeVar("T")
TOKENS_ON_CPU = 16_384  # tokens that a batch keeps in its KV cache
TOKENS_ON_GPU = 131_072
SCORING_SHARE = 0.25  # of that for scoring; smaller batches fit the processor's caches
COMPANY = 16  # rows of a matrix product from which on each is computed the same way
STEM = 16  # what shared contexts are padded to a multiple of
LOGITS_ON_CPU = 8_000_000  # floats at once: glibc gives larger buffers back, and gets them zeroed
LOGITS_ON_GPU = 32_000_000


class Cost(NamedTuple):
    """What a batch takes."""

    rows: int
    length: int
    """Tokens of the longest row, those in the cache included."""
    scored: int
    """Tokens of all rows that are scored: large caches are slow to read at once."""
    kept: int
    """Positions of a row with logits."""

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        """The cost of both in one batch."""
        return Cost(
            self.rows + other.rows,
            max(self.length, other.length),
            self.scored + other.scored,
            max(self.kept, other.kept),
        )


class Batcher:
    """Cuts work into batches: a number of rows, or "auto" for a budget of tokens."""

    def __init__(self, device: torch.device, size: int | str, vocabulary: int) -> None:
        self.device, self.size, self.vocabulary = device, size, vocabulary
        on_cpu = device.type == "cpu"
        self.budget = TOKENS_ON_CPU if on_cpu else TOKENS_ON_GPU
        self.most_logits = LOGITS_ON_CPU if on_cpu else LOGITS_ON_GPU

    def run(
        self,
        items: list[T],
        cost: Callable[[T], Cost],
        run: Callable[[list[T]], None],
    ) -> None:
        """Run items in batches inside the budget; out of memory halves the budget."""
        batch: list[T] = []
        total = Cost(0, 0, 0, 0)
        for item in items:
            one = cost(item)
            if batch and self.too_large(total + one):
                self._guarded(batch, run)
                batch, total = [], Cost(0, 0, 0, 0)
            batch.append(item)
            total = total + one
        if batch:
            self._guarded(batch, run)

    def too_large(self, cost: Cost) -> bool:
        """True if a batch of that cost is more than one forward pass should take."""
        if self.size != "auto":
            return cost.rows > int(self.size)
        return (
            cost.rows * cost.length > self.budget
            or cost.scored > SCORING_SHARE * self.budget
            or cost.rows * cost.kept * self.vocabulary > self.most_logits
        )

    def _guarded(self, batch: list[T], run: Callable[[list[T]], None]) -> None:
        try:
            return run(batch)
        except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise RunError(
                    "out of memory with the smallest batch; free some memory, or evaluate a "
                    "smaller model or shorter prompts"
                ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.budget = max(1, self.budget // 2)
        half = len(batch) // 2
        self._guarded(batch[:half], run)
        self._guarded(batch[half:], run)
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's and the CPU allocator's way of saying it."""
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        "out of memory" in text or "can't allocate memory" in text
    )


def padded_length(tokens: int, least: int = 4) -> int:
    """The length that so many tokens are padded to: 4, 8, 16, 32, 48, …"""
    while least < STEM and least < tokens:
        least *= 2
    return least if tokens <= least else -(-tokens // STEM) * STEM


def by_shape(rows: Iterable[T], length_of: Callable[[T], int]) -> Iterator[tuple[int, list[T]]]:
    """(length, the rows padded to it), longest first."""
    groups: dict[int, list[T]] = {}
    for row in rows:
        groups.setdefault(length_of(row), []).append(row)
    yield from sorted(groups.items(), reverse=True)


def with_company(
    rows: list[tuple[int, ...]], length: int, device: torch.device
) -> list[tuple[int, ...]]:
    """The rows and, on a CPU, copies of the first until they hold a multiple of 16 tokens."""
    lacking = -len(rows) % max(1, COMPANY // length) if device.type == "cpu" else 0
    return rows + rows[:1] * lacking
