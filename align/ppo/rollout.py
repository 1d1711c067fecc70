"""One rollout: prompts in; completions, scores, log-probabilities and values out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from align.data.render import completion_text
from align.errors import CheckpointError, DataError
from align.ppo.generate import Completions, generate
from align.ppo.models import LENGTHS, Networks, Sequences, shape_step
from align.ppo.rewards import Record, Scores
from align.ppo.trunk import Trunk
from align.streams import Streams


class Prompt(NamedTuple):
    """A prompt-only record with its rendered token ids."""

    record: Record
    ids: list[int]


@dataclass
class Rollout:
    """A generated batch of one process; per-token tensors are ``(B, T)``, 0 on padding.

    Attributes:
        prompts: the B prompts
        completions: their texts without stop tokens
        sequences: token ids, prompt and completion, padded on the right
        mask: True on real completion tokens
        ended: ``(B,)``, False where the length limit cut
        scores: ``(B,)``, unshaped
        parts: the scores of each reward
        logprobs: of the sampling policy
        ref_logprobs: of the reference
        entropy: of the sampling policy
        values: of the state before each token
        final_values: ``(B,)``, of the state after the last token
        sampler_logprobs: of the engine that sampled, where that is another one
    """

    prompts: Sequence[Prompt]
    completions: list[str]
    sequences: Sequences
    mask: Tensor
    ended: Tensor
    scores: Tensor
    parts: dict[str, Tensor]
    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor
    final_values: Tensor
    sampler_logprobs: Tensor | None = None


def messages(record: Record) -> list[dict[str, str]]:
    """A record's prompt as messages; a plain string is one user message."""
    prompt = record["prompt"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def check_pad(tokenizer: Any) -> None:
    """Refuse a tokenizer without a PAD of its own.

    Raises:
        CheckpointError: PAD is missing, or is EOS.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise CheckpointError(
            f"the tokenizer's PAD is {tokenizer.pad_token!r} and its EOS {tokenizer.eos_token!r}: "
            "PPO needs a PAD of its own; load it with align.checkpoint.load_tokenizer, which adds "
            "one, or call tokenizer.add_special_tokens({'pad_token': '<pad>'}) and "
            "model.resize_token_embeddings(len(tokenizer))"
        )


def tokenize(records: Sequence[Record], tokenizer: Any, longest: int) -> list[Prompt]:
    """Records rendered with the chat template up to where the assistant speaks.

    Prompts longer than ``longest`` tokens are left out; the caller counts them.
    """
    rendered = (
        tokenizer.apply_chat_template(
            messages(record), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for record in records
    )
    prompts = [Prompt(r, list(ids)) for r, ids in zip(records, rendered, strict=True)]
    return [p for p in prompts if len(p.ids) <= longest]


def demonstrations(
    records: Sequence[Record], tokenizer: Any, longest: int, eos_token_id: int
) -> Sequences:
    """Prompt-completion records as sequences for PPO-ptx; longer ones than ``longest`` are left
    out.

    Raises:
        DataError: none fits.
    """
    prompts = tokenize(records, tokenizer, longest)
    rows = []
    for prompt in prompts:
        text = completion_text(prompt.record)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [eos_token_id]
        if len(prompt.ids) + len(ids) <= longest:
            rows.append((prompt.ids, ids))
    if not rows:
        raise DataError(
            f"none of {len(records)} ptx records fits into {longest} tokens; raise max_length"
        )
    width = max(len(p) + len(c) for p, c in rows)
    pad = tokenizer.pad_token_id
    return Sequences(
        torch.tensor([p + c + [pad] * (width - len(p) - len(c)) for p, c in rows]),
        torch.tensor([len(p) for p, _ in rows]),
        torch.tensor([len(c) for _, c in rows]),
    )


def left_padded(
    prompts: Sequence[Prompt], pad: int, device: Any, step: int = 1
) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts, ``(B, P)`` each; P is a multiple of ``step``."""
    width = max(len(p.ids) for p in prompts)
    width += -width % step
    ids = [[pad] * (width - len(p.ids)) + p.ids for p in prompts]
    mask = [[False] * (width - len(p.ids)) + [True] * len(p.ids) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def sample_completions(
    networks: Networks,
    prompts: Sequence[Prompt],
    uniforms: Tensor,
    *,
    rows_at_once: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    temperature: float,
    device: Any,
) -> Completions:
    """Completions of all prompts, ``rows_at_once`` at a time, those of like length together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    pieces = []
    with networks.sampling() as model:
        for start in range(0, len(order), rows_at_once):
            rows = order[start : start + rows_at_once]
            some, step = [prompts[i] for i in rows], shape_step(model, LENGTHS)
            ids, mask = left_padded(some, pad_token_id, device, step)
            pieces.append(
                generate(
                    model,
                    ids,
                    mask,
                    uniforms[rows],
                    eos_token_ids=eos_token_ids,
                    pad_token_id=pad_token_id,
                    temperature=temperature,
                )
            )
    back = torch.tensor(order, device=device).argsort()
    columns = zip(*((p.ids, p.mask, p.ended) for p in pieces), strict=True)
    return Completions(*(torch.cat(column)[back] for column in columns))


def join(prompts: Sequence[Prompt], completions: Completions, pad: int) -> Sequences:
    """Prompts and completions in one tensor, padded on the right."""
    device = completions.ids.device
    prompt_lengths = torch.tensor([len(p.ids) for p in prompts], device=device)
    completion_lengths = completions.mask.sum(1)
    ids = torch.full((len(prompts), int((prompt_lengths + completion_lengths).max())), pad)
    cpu = completions.ids.cpu()
    for i, (prompt, n) in enumerate(zip(prompts, completion_lengths.tolist(), strict=True)):
        start = len(prompt.ids)
        ids[i, :start] = torch.tensor(prompt.ids)
        ids[i, start : start + n] = cpu[i, :n]
    return Sequences(ids.to(device), prompt_lengths, completion_lengths)


def texts(completions: Completions, tokenizer: Any) -> list[str]:
    """Decoded completions without their stop token."""
    lengths = (completions.mask.sum(1) - completions.ended.long()).tolist()
    ids = [row[:n] for row, n in zip(completions.ids.tolist(), lengths, strict=True)]
    return list(tokenizer.batch_decode(ids, skip_special_tokens=True))


def micro_batches(streams: Streams, lengths: Tensor, most: int) -> list[Tensor]:
    """Row numbers in groups of ``most`` or fewer, rows of like length together: least padding."""
    size = streams.rows(most, len(lengths))
    return list(torch.argsort(lengths, stable=True).split(size))


class Pass(NamedTuple):
    """A forward pass over a rollout whose results are wanted per token.

    Attributes:
        mask: ``(B, T)`` of the tokens
        run: maps networks and a micro-batch to tensors ``(n,)`` over its real tokens, row by row
    """

    mask: Tensor
    run: Callable[[Any, Sequences], tuple[Tensor, ...]]


def by_token(
    streams: Streams, sequences: Sequences, passes: Sequence[Pass], size: int
) -> list[list[Tensor]]:
    """The results ``(B, T)`` of each pass over B rows, ``size`` or fewer of them at a time."""
    micro = micro_batches(streams, sequences.lengths, size)

    @torch.no_grad()
    def results(networks: Any, job: tuple[Pass, Tensor]) -> tuple[Tensor, ...]:
        (_, run), rows = job
        return run(networks, sequences.rows(rows))

    # One pass after the other, so that adapters are switched between passes only.
    jobs = [(one, rows) for one in passes for rows in micro]
    done = iter(streams.map(results, jobs))
    found = []
    for one in passes:
        columns = zip(*islice(done, len(micro)), strict=True)
        found.append([whole(one.mask, micro, column) for column in columns])
    return found


def whole(mask: Tensor, micro: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """``(B, T)`` from the real tokens ``(n,)`` of each micro-batch."""
    out = torch.zeros(mask.shape, device=mask.device)
    for rows, part in zip(micro, parts, strict=True):
        piece = torch.zeros(len(rows), mask.shape[1], device=mask.device)
        piece[mask[rows]] = part.float()
        out[rows] = piece
    return out


def with_trunk(streams: Streams, sequences: Sequences, layers: int, size: int) -> Sequences:
    """The sequences with the states that all networks share, where there are such ``layers``."""
    if not layers:
        return sequences
    micro = micro_batches(streams, sequences.lengths, size)

    @torch.no_grad()
    def states(networks: Any, rows: Tensor) -> Tensor:
        found: Tensor = networks("trunk", sequences.rows(rows))  # (b, l, H)
        return F.pad(found, (0, 0, 0, sequences.ids.shape[1] - found.shape[1]))

    order = torch.cat(micro).argsort()
    return sequences._replace(trunk=Trunk(layers, torch.cat(streams.map(states, micro))[order]))


def score_rollout(
    streams: Streams,
    prompts: Sequence[Prompt],
    completions: Completions,
    reward: Callable[[Sequence[Record], Sequence[str], Sequence[bool]], Scores],
    tokenizer: Any,
    *,
    temperature: float,
    micro_batch: int,
    trunk_layers: int = 0,
) -> Rollout:
    """Everything that PPO wants to know about completions, without gradients.

    1. Decode and score the texts. 2. States that the networks share.
    3. Log-probabilities under policy and reference, values before each token and after the last.

    Args:
        streams: of the networks, as accelerate prepared them
        prompts: B prompts
        completions: theirs
        reward: scores texts
        tokenizer: the policy's
        temperature: that of sampling
        micro_batch: rows in one forward pass
        trunk_layers: see `align.ppo.trunk`
    """
    # 1. scores of the texts
    decoded = texts(completions, tokenizer)
    scores = reward([p.record for p in prompts], decoded, completions.ended.tolist())
    device = completions.ids.device
    sequences = join(prompts, completions, tokenizer.pad_token_id)
    mask = completions.mask[:, : int(sequences.completion_lengths.max())]
    sampler = completions.logprobs

    # 2. states below the first adapter
    sequences = with_trunk(streams, sequences, trunk_layers, micro_batch)

    # 3. log-probabilities of the completion tokens, values of all states
    longer = torch.cat((mask.new_ones(len(mask), 1), mask), 1)  # (B, T + 1)
    passes = [
        Pass(mask, lambda networks, s: networks("policy", s, temperature, with_entropy=True)),
        Pass(mask, lambda networks, s: networks("reference", s, temperature)[:1]),
        Pass(longer, lambda networks, s: (networks("value", s, extra=1),)),
    ]
    (logprobs, entropies), (ref_logprobs,), (values,) = by_token(
        streams, sequences, passes, micro_batch
    )
    final = values.gather(1, sequences.completion_lengths.unsqueeze(1)).squeeze(1)  # (B,)
    return Rollout(
        prompts=prompts,
        completions=decoded,
        sequences=sequences,
        mask=mask,
        ended=completions.ended,
        scores=scores.total.to(device),
        parts=scores.parts,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        entropy=entropies,
        values=torch.where(mask, values[:, :-1], 0.0),
        final_values=final,
        sampler_logprobs=None if sampler is None else sampler[:, : mask.shape[1]],
    )
