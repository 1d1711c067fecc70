"""Greedy and sampled completions in batches whose finished rows leave.

A sample's randomness is its own: row r draws from a generator seeded by (seed, prompt, sample
index), so that neither batch size nor order nor its neighbours change it. Nor do they change the
probabilities that it draws from, on a CPU: see `batching`.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lm_eval.models.utils import normalize_gen_kwargs

from align.errors import EvalError
from align.evaluation.batching import COMPANY
from align.evaluation.kv import buffered, expanded, is_shareable
from align.evaluation.sharing import common_prefix

if TYPE_CHECKING:
    from align.evaluation.lm import PrefixLM

MIN_SHARED = 256  # tokens saved that are worth one more forward pass
TRIES = 24  # draws for one token; at top_p 0.9 one in 10^24 tokens needs more
BLOCK = 256  # tokens of the vocabulary that are summed before a draw looks inside
PICKED = 2_000_000  # probabilities at once on a CPU: larger buffers go back to the system each time
COMPACT_AT = 0.85  # share of live rows at which the others leave the batch
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}


class Settings(NamedTuple):
    """How to complete. temperature 0: greedy. top_k 0 and top_p 1: the whole distribution."""

    max_new_tokens: int
    until: tuple[str, ...]
    temperature: float
    top_p: float
    top_k: int


def settings(generation_kwargs: dict[str, Any]) -> Settings:
    """lm-eval's generation_kwargs, checked.

    Raises:
        EvalError: a key that this loop does not obey.
    """
    got = dict(normalize_gen_kwargs(generation_kwargs, 256))
    unknown = sorted(set(got) - KNOWN)
    if unknown:
        raise EvalError(
            f"generation_kwargs has {unknown[0]!r}, which is not obeyed; known: {sorted(KNOWN)}"
        )
    until = [got["until"]] if isinstance(got["until"], str) else list(got["until"])
    return Settings(
        max_new_tokens=int(got["max_gen_toks"]),
        until=tuple(text for text in until if text),
        temperature=float(got.get("temperature", 1.0)) if got["do_sample"] else 0.0,
        top_p=float(got.get("top_p", 1.0)),
        top_k=int(got.get("top_k", 0) or 0),
    )


def seed_of(seed: int, prompt: str, index: int) -> int:
    """The seed of one sample."""
    digest = hashlib.sha256(f"{seed}\n{index}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def uniforms(seeds: Sequence[int], steps: int) -> torch.Tensor:
    """(B, steps, TRIES) numbers in [0, 1), row r from its own generator."""
    generator = torch.Generator()
    rows = [
        torch.rand(steps, TRIES, generator=generator.manual_seed(s), dtype=torch.float64)
        for s in seeds
    ]
    return torch.stack(rows)


def pick(logits: torch.Tensor, how: Settings, u: torch.Tensor | None) -> torch.Tensor:
    """Next tokens (B,) from logits (B, V): the best, or a sample made of uniforms u (B, TRIES).

    The nucleus is the smallest set of most probable tokens that holds top_p (1904.09751, section
    3.1). Sorting the vocabulary is what makes it slow, so:

    1. draw from the whole distribution; 2. the draw stands if the tokens more probable than it
    hold less than top_p (and are fewer than top_k); 3. else draw again. Tokens lie end to end in
    the order of the vocabulary, so rounding can't swap neighbours.
    """
    if how.temperature == 0 or u is None:
        return logits.argmax(-1)
    at_once = max(1, PICKED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = zip(logits.split(at_once), u.split(at_once), strict=True)
    return torch.cat([_sample(part, how, numbers) for part, numbers in parts])


def _sample(logits: torch.Tensor, how: Settings, u: torch.Tensor) -> torch.Tensor:
    """Samples (B,) from logits (B, V) by uniforms u (B, TRIES): see `pick`."""
    logits = logits.float()
    probs = (logits if how.temperature == 1 else logits / how.temperature).softmax(-1)
    ends = block_sums(probs).cumsum(-1, dtype=torch.float64)
    chosen = _draw(probs, ends, u[:, 0])
    if how.top_p >= 1 and not how.top_k:
        return chosen
    rows = _outside(probs, chosen, how).nonzero()[:, 0]
    for attempt in range(1, TRIES + 1):
        if not len(rows):
            break
        left = probs[rows]
        retry = attempt < TRIES  # else: what is left, rarely anything, gets its best token
        new = _draw(left, ends[rows], u[rows, attempt]) if retry else left.argmax(-1)
        chosen[rows] = new
        rows = rows[_outside(left, new, how)]
    return chosen


def block_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums (B, ceil(V / BLOCK)) of neighbours in x (B, V).

    A cumulated sum of the whole vocabulary is many times slower. Nor do B or the number of threads
    change how these are added up.
    """
    whole = x.shape[1] // BLOCK * BLOCK
    sums = x[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    return sums if whole == x.shape[1] else torch.cat([sums, x[:, whole:].sum(-1)[:, None]], 1)


def _draw(probs: torch.Tensor, ends: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The tokens (B,) at quantile u (B,) of distributions (B, V) whose blocks end at (B, N)."""
    block, rest = _at(ends, u * ends[:, -1])
    places = block[:, None] * BLOCK + torch.arange(BLOCK, device=probs.device)
    inside = probs.gather(1, places.clamp(max=probs.shape[1] - 1))
    inside = inside * (places < probs.shape[1])
    within, _ = _at(inside.cumsum(-1, dtype=torch.float64), rest)
    return block * BLOCK + within


def _at(ends: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the parts that end at (B, N) holds value (B,), and how far inside it that is.

    A value that rounding put behind the end belongs to the last part that isn't empty.
    """
    last = torch.searchsorted(ends, ends[:, -1:].contiguous())
    at = torch.minimum(torch.searchsorted(ends, value[:, None], right=True), last)
    before = ends.gather(1, (at - 1).clamp(min=0)).where(at > 0, ends.new_zeros(()))
    return at[:, 0], value - before[:, 0]


def _outside(probs: torch.Tensor, tokens: torch.Tensor, how: Settings) -> torch.Tensor:
    """(B,) True where a token is not in the nucleus, or not among the top k."""
    own = probs.gather(1, tokens[:, None])
    above = torch.gt(probs, own, out=torch.empty_like(probs))  # 1.0 and 0.0: adds up faster
    beyond = above.sum(-1) >= (how.top_k or probs.shape[1])
    return beyond | (block_sums(above.mul_(probs)).sum(-1) >= how.top_p)


class Stops:
    """Finds out when a completion is over: an EOS token or a stop string."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], until: tuple[str, ...]) -> None:
        self.tokenizer, self.eos_ids, self.until = tokenizer, eos_ids, until
        self.ends = {text[-1] for text in until}
        self.may_end: dict[int, bool] = {}
        self.window = max((len(text) for text in until), default=0) + 4

    def __call__(self, tokens: list[int]) -> bool:
        """True if the last token ends the completion."""
        last = tokens[-1]
        if last in self.eos_ids:
            return True
        if not self.until:
            return False
        if last not in self.may_end:
            piece = self.tokenizer.decode([last])
            self.may_end[last] = "\ufffd" in piece or any(c in piece for c in self.ends)
        if not self.may_end[last]:
            return False
        tail = self.tokenizer.decode(tokens[-self.window :])
        return any(text in tail for text in self.until)

    def text(self, tokens: list[int]) -> str:
        """The completion without EOS and what follows a stop string."""
        while tokens and tokens[-1] in self.eos_ids:
            tokens = tokens[:-1]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in self.until:
            text = text.split(stop)[0]
        return str(text)


class Head(NamedTuple):
    """What all prompts of a task begin with: tokens, and their KV cache (one row) or None."""

    length: int
    cache: Any


@torch.inference_mode()
def generate(
    lm: "PrefixLM",
    head: Head,
    prompts: list[list[int]],
    copies: list[int],
    seeds: list[int],
    how: Settings,
    length: int,
) -> list[str]:
    """``copies[p]`` completions of each prompt, in order.

    ``length``: what the prompts behind the head are padded to, more than any of them has (so that
    the mask always has a hole: transformers leaves out one without, which changes roundings).

    1. Prefill every prompt behind the head, padded left.
    2. Repeat each prompt's cache for its copies.
    3. Pick, append, and let finished rows leave once enough of them are done.
    """
    device = lm.device
    stops = Stops(lm.tokenizer, lm.eos_ids, how.until)
    # 1.
    out, mask = _prefill(lm, head, prompts, length)
    # 2.
    owners = _accompanied([p for p, n in enumerate(copies) for _ in range(n)], device)
    owner = torch.tensor(owners, device=device)
    cache = buffered(out.past_key_values, owner, how.max_new_tokens)
    position = torch.tensor([len(p) for p in prompts], device=device).index_select(0, owner)
    mask = mask.index_select(0, owner)
    u = uniforms(seeds, how.max_new_tokens).to(device) if how.temperature else None
    # 3.
    written: list[list[int]] = [[] for _ in seeds]
    live = list(range(len(seeds)))  # row of the batch -> completion; what follows is company
    over = [False] * len(seeds)

    def picked(logits: torch.Tensor, step: int) -> torch.Tensor:
        rows = torch.tensor(live + live[:1] * (len(logits) - len(live)), device=device)
        return pick(logits, how, u[rows, step] if u is not None else None)

    chosen = picked(out.logits[:, -1].index_select(0, owner), 0)
    for step in range(1, how.max_new_tokens + 1):
        for completion, token in zip(live, chosen.tolist(), strict=False):
            if not over[completion]:
                written[completion].append(token)
                over[completion] = stops(written[completion])
        kept = [r for r, completion in enumerate(live) if not over[completion]]
        if not kept or step == how.max_new_tokens:
            break
        if len(kept) <= COMPACT_AT * len(live) and len(_accompanied(kept, device)) < len(mask):
            index = torch.tensor(_accompanied(kept, device), device=device)
            for layer in cache.layers:
                layer.select(index)
            chosen, position, mask = chosen[index], position[index], mask[index]
            live = [live[r] for r in kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        # no name holds the logits: the next ones get their place, new memory comes zeroed
        chosen = picked(
            _step(lm, chosen[:, None], position[:, None], mask, cache, keep=1).logits[:, -1], step
        )
        position = position + 1
    return [stops.text(tokens) for tokens in written]


def _accompanied(rows: list[int], device: torch.device) -> list[int]:
    """Rows of one token each, with the company that few of them need on a CPU (see `batching`)."""
    return rows + rows[:1] * (-len(rows) % COMPANY if device.type == "cpu" else 0)


def _prefill(
    lm: "PrefixLM", head: Head, prompts: list[list[int]], length: int
) -> tuple[Any, torch.Tensor]:
    """(output of the model, mask (B, head + length) True on real tokens)."""
    device = lm.device
    rests = [p[head.length :] for p in prompts]
    pad = [length - len(r) for r in rests]
    tokens = torch.tensor([[0] * n + r for n, r in zip(pad, rests, strict=True)], device=device)
    before = torch.tensor(pad, device=device)[:, None]
    places = torch.arange(length, device=device) - before  # (B, T), negative on padding
    mask = torch.cat(
        [places.new_ones(len(prompts), head.length, dtype=torch.bool), places >= 0], dim=1
    )
    positions = places.clamp(min=0) + head.length
    cache, keep = expanded(head.cache, len(prompts)), -(-COMPANY // len(prompts))
    out = _step(lm, tokens, positions, mask, cache, keep=keep)
    if not is_shareable(out.past_key_values):
        raise EvalError(
            f"{type(lm.model).__name__} keeps a cache that can't be repeated row by row; "
            "generation with it is not supported yet"
        )
    return out, mask


def shared_prefix(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with, 0 where computing them apart would not pay."""
    first, last = min(prompts), max(prompts)
    n = common_prefix(first, last, min(map(len, prompts)) - 1)
    return n if n * (len(prompts) - 1) >= MIN_SHARED else 0


def _step(
    lm: "PrefixLM",
    tokens: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor | None,
    cache: Any,
    keep: int,
) -> Any:
    extra: dict[str, Any] = {}
    if mask is not None:
        extra["attention_mask"] = mask.long()
    if lm._takes_positions:
        extra["position_ids"] = positions
    if lm._takes_keep:
        extra["logits_to_keep"] = keep
    return lm.model(input_ids=tokens, past_key_values=cache, use_cache=True, **extra)
