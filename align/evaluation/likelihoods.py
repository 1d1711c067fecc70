"""Log-likelihoods of continuations, every shared prefix computed once."""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from align.errors import EvalError
from align.evaluation.batching import (
    COMPANY,
    STEM,
    Cost,
    by_shape,
    padded_length,
    with_company,
)
from align.evaluation.kv import expanded, selected
from align.evaluation.sharing import Branch, plan

if TYPE_CHECKING:
    from align.evaluation.lm import PrefixLM

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
DIGITS = 5  # of a log-likelihood: what float32 can tell


class Unique(NamedTuple):
    """One model input and the requests that it answers."""

    tokens: tuple[int, ...]
    requests: list[int]


class Scored(NamedTuple):
    """What the model says of the last K tokens of one row."""

    logits: torch.Tensor
    """(K, V), the last row predicts the last token."""
    norms: torch.Tensor
    """(K,) their logsumexp."""
    best: torch.Tensor
    """(K,) the likeliest token."""


class Work(NamedTuple):
    """What is being scored: inputs behind one trunk, and where their answers go."""

    depth: int
    """Tokens of the trunk."""
    cache: Any
    unique: list[Unique]
    limits: list[int]
    asked: list[bool]
    requests: list[Encoded]
    answers: list[tuple[float, bool]]


def score(lm: "PrefixLM", requests: list[Encoded]) -> list[tuple[float, bool]]:
    """(sum of log-probabilities, is it the greedy continuation) of each request.

    1. Cut each context + continuation from the left to the model's context, as lm-eval does.
    2. Requests that differ in their last token only are one input.
    3. Find the prefixes worth computing once, from all requests: the same ones whichever of
       them are skipped.
    4. Score rows of one shape at a time (see `batching`), so that their numbers don't depend on
       what else is asked for.
    """
    answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
    unique = _unique(lm, requests)
    limits = [_first_needed(u, requests) for u in unique]
    asked = [not all(lm.skipped(requests[i]) for i in u.requests) for u in unique]
    for trunk in plan([u.tokens for u in unique], limits):
        if not any(asked[i] for branch in trunk.branches for i in branch.rows):
            continue
        cache = lm.trunk(unique[trunk.branches[0].rows[0]].tokens[: trunk.depth])
        depth = trunk.depth if cache is not None else 0
        work = Work(depth, cache, unique, limits, asked, requests, answers)
        shared = [b for b in trunk.branches if len(b.rows) > 1 and lm.can_share()]
        rows = {i for b in trunk.branches for i in b.rows} - {i for b in shared for i in b.rows}
        _score_branches(lm, work, [b for b in shared if any(asked[i] for i in b.rows)])
        _score_rows(lm, work, [i for i in sorted(rows) if asked[i]])
    return answers


def _unique(lm: "PrefixLM", requests: list[Encoded]) -> list[Unique]:
    """Steps 1 and 2."""
    unique: dict[tuple[int, ...], Unique] = {}
    for i, (_, context, continuation) in enumerate(requests):
        if not 0 < len(continuation) <= lm.max_length:
            raise EvalError(
                f"a continuation has {len(continuation)} tokens; it must have 1 to "
                f"{lm.max_length}, the model's context"
            )
        full = (*context, *continuation)
        lm.truncated += len(full) > lm.max_length + 1
        tokens = full[-(lm.max_length + 1) :][:-1]
        unique.setdefault(tokens, Unique(tokens, [])).requests.append(i)
    return list(unique.values())


def _first_needed(row: Unique, requests: list[Encoded]) -> int:
    """The first position whose prediction is asked for."""
    return len(row.tokens) - max(len(requests[i][2]) for i in row.requests)


def _score_rows(lm: "PrefixLM", work: Work, rows: list[int]) -> None:
    """Score inputs one by one behind the trunk."""

    def score(batch: list[int], length: int) -> None:
        tails = [work.unique[i].tokens[work.depth :] for i in batch]
        padded = with_company(tails, length, lm.device)
        cache = expanded(work.cache, len(padded))
        _score_tails(lm, work, batch, padded, work.depth, length, cache, None)

    def length_of(i: int) -> int:
        return padded_length(len(work.unique[i].tokens) - work.depth)

    for length, same in by_shape(rows, length_of):
        cost = partial(_cost, work, work.depth, length)
        lm.batches.run(same, cost, partial(score, length=length))


def _score_branches(lm: "PrefixLM", work: Work, branches: list[Branch]) -> None:
    """Compute what the rows of a branch share, then each row's own end."""

    def score(batch: list[Branch], length: int) -> None:
        stems = [work.unique[b.rows[0]].tokens[work.depth : b.depth] for b in batch]
        padded = with_company(stems, length, lm.device)
        cache = expanded(work.cache, len(padded))
        cache = lm.forward(padded, work.depth, cache, None, keep=1, length=length)[1]
        mask = _past_mask([len(s) for s in stems], work.depth, length, lm.device)
        _score_leaves(lm, work, batch, cache, mask)

    def length_of(branch: Branch) -> int:
        # one longer than the stem: a mask without a hole would be left out by transformers
        return padded_length(branch.depth - work.depth + 1, least=STEM)

    for length, same in by_shape(branches, length_of):
        each = Cost(1, work.depth + length, work.depth + length, 1)
        lm.batches.run(same, partial(_always, each), partial(score, length=length))


def _score_leaves(
    lm: "PrefixLM", work: Work, branches: list[Branch], cache: Any, mask: torch.Tensor
) -> None:
    """Score the rows of some branches; ``cache`` and ``mask`` have one row a branch."""
    depths = {i: (g, b.depth) for g, b in enumerate(branches) for i in b.rows if work.asked[i]}

    def score(batch: list[int], length: int) -> None:
        tails = [work.unique[i].tokens[depths[i][1] :] for i in batch]
        padded = with_company(tails, length, lm.device)
        starts = [depths[i][1] for i in batch]
        starts += starts[:1] * (len(padded) - len(batch))
        owners = [depths[i][0] for i in batch]
        owners += owners[:1] * (len(padded) - len(batch))
        index = torch.tensor(owners, device=lm.device)
        own, past = selected(cache, index), mask[index]
        _score_tails(lm, work, batch, padded, starts, length, own, past)

    def length_of(i: int) -> int:
        return padded_length(len(work.unique[i].tokens) - depths[i][1])

    past = mask.shape[1]
    for length, same in by_shape(list(depths), length_of):
        cost = partial(_cost, work, past, length)
        lm.batches.run(same, cost, partial(score, length=length))


def _cost(work: Work, past: int, length: int, i: int) -> Cost:
    """What a row takes that ends ``length`` (padded) tokens behind a cache of ``past``."""
    needed = len(work.unique[i].tokens) - work.limits[i]
    return Cost(1, past + length, past + length, min(length, needed))


def _score_tails(
    lm: "PrefixLM",
    work: Work,
    rows: list[int],
    tails: list[tuple[int, ...]],
    starts: int | list[int],
    length: int,
    cache: Any,
    mask: torch.Tensor | None,
) -> None:
    """Score rows whose last tokens are ``tails``; what is behind len(rows) is company."""
    needed = max(len(work.unique[i].tokens) - work.limits[i] for i in rows)
    keep = max(needed, -(-COMPANY // len(tails)))
    logits, _ = lm.forward(tails, starts, cache, mask, keep=keep, length=length)
    logits = logits[: len(rows)].float()
    norms, best = logits.logsumexp(-1), logits.argmax(-1)
    for row, i in enumerate(rows):
        scored = Scored(logits[row], norms[row], best[row])
        _answer(lm, scored, work.unique[i], work.requests, work.answers)


def _answer(
    lm: "PrefixLM",
    scored: Scored,
    row: Unique,
    requests: list[Encoded],
    answers: list[tuple[float, bool]],
) -> None:
    """Fill in the answers to all requests of one input."""
    for i in row.requests:
        continuation = torch.tensor(requests[i][2], device=scored.logits.device)
        n = len(continuation)
        picked = scored.logits[-n:].gather(1, continuation[:, None])[:, 0] - scored.norms[-n:]
        total = round(float(picked.sum(dtype=torch.float64)), DIGITS)
        answers[i] = (total, bool((scored.best[-n:] == continuation).all()))
        if requests[i][0] is not None and not lm.skipped(requests[i]):
            lm.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])


def _always(cost: Cost, _: Branch) -> Cost:
    return cost


def _past_mask(lengths: list[int], depth: int, padded: int, device: torch.device) -> torch.Tensor:
    """(G, depth + padded) True on real tokens of stems that are padded on the right."""
    real = torch.arange(padded, device=device) < torch.tensor(lengths, device=device)[:, None]
    return torch.cat([torch.ones(len(lengths), depth, dtype=torch.bool, device=device), real], 1)
