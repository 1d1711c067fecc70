"""Several micro-batches of a small network at a time on a CPU, a core each.

Two threads inside one operation on a small tensor spend more time on waiting for each other than
on the numbers. So here each core takes micro-batches of its own: it has a copy of the modules that
shares every weight's memory but has gradients, and a switched-on adapter, of its own. Afterwards
gradients are added up in the order of the copies: the same run gives the same bits.

Elsewhere (large networks, GPUs, several processes) there is one stream, the network itself.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

Part = TypeVar("Part")
Result = TypeVar("Result")

SMALL = 2**25  # parameters; above it two threads in one operation do well
MOST = 8  # streams: Python runs one of them at a time between their operations


class Streams:
    """A network and as many copies of it as there are further cores to run them."""

    def __init__(self, network: nn.Module):
        """Copy nothing but the modules."""
        parameters = list(network.parameters())
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 and parameters[0].device.type == "cpu"
        small = sum(parameter.numel() for parameter in parameters) <= SMALL
        self.threads = torch.get_num_threads()
        self.count = min(self.threads, MOST) if alone and small else 1
        self.networks = [network, *(twin(network) for _ in range(self.count - 1))]

    def rows(self, most: int, all_of_them: int) -> int:
        """Rows of a micro-batch: ``most``, or fewer so that every stream gets two of them."""
        return min(most, max(1, all_of_them // (2 * self.count))) if self.count > 1 else most

    def map(self, work: Callable[[Any, Part], Result], parts: Sequence[Part]) -> list[Result]:
        """``work(network, part)`` of all parts, in their order.

        Parts are dealt to and fro (0 1 1 0 …), which shares them out evenly where they get longer.
        """
        if self.count == 1:
            return [work(self.networks[0], part) for part in parts]
        turns = [*range(self.count), *reversed(range(self.count))]
        owners = [turns[i % len(turns)] for i in range(len(parts))]

        def stream(own: int) -> list[Result]:
            return [
                work(self.networks[own], p) for p, o in zip(parts, owners, strict=True) if o == own
            ]

        try:
            done = [iter(results) for results in pool(self.count).map(stream, range(self.count))]
        finally:
            torch.set_num_threads(self.threads)  # what the pool's threads set is everybody's
        return [next(done[owner]) for owner in owners]

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """For work that can't be cut: small networks on one core, large ones on all."""
        if self.count > 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Move the copies' gradients to the network."""
        for other in self.networks[1:]:
            for mine, its in zip(self.networks[0].parameters(), other.parameters(), strict=True):
                if its.grad is None:
                    continue
                mine.grad = its.grad if mine.grad is None else mine.grad.add_(its.grad)
                its.grad = None


@cache
def pool(count: int) -> ThreadPoolExecutor:
    """The threads of all streams; each has memory of its own, which it does not give back."""
    return ThreadPoolExecutor(count, "align-stream", _one_core)


if hasattr(os, "register_at_fork"):  # a fork takes no threads along
    os.register_at_fork(after_in_child=pool.cache_clear)


def _one_core() -> None:
    """Let operations of this thread use no other one."""
    torch.get_num_threads()  # the first look would set what another thread has asked for last
    torch.set_num_threads(1)


def twin(network: nn.Module) -> Any:
    """A copy of the modules whose parameters and buffers share their memory with the original's."""
    memo: dict[int, Any] = {id(b): b for b in network.buffers()}
    for parameter in network.parameters():
        shared = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        memo[id(parameter)] = shared
    return copy.deepcopy(network, memo)
