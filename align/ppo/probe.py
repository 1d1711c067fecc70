"""Whether PPO computes what a model computes; asked once, with a few tokens, before a run starts.

PPO pads prompts on the left to sample, with keys and values of its own, pads completions on the
right to score, without a mask, and applies the LM head itself. Nearly all causal models of
transformers give the same probabilities then as alone and without padding. One that does not (state
that runs through padding, attention to both sides, a head with more than a matrix) would be trained
on wrong probabilities without any sign of it, so it is refused.
"""

from typing import Any

import torch
from torch import Tensor

from align.errors import CheckpointError
from align.ppo.generate import draws, generate
from align.ppo.models import Head, Networks, Sequences, causal_lm

LENGTHS, NEW = (3, 8, 5), 4  # tokens of the prompts and of each completion
EXACT, ROUNDED = 2e-4, 0.1  # largest difference of a probability in float32, in 16 or fewer bits
MOVING = {"dynamic", "longrope"}  # encodings of positions that follow the longest row
OTHERWISE = "use another model_name_or_path; most decoder-only transformers will do"


def check_model(networks: Networks, max_length: int) -> None:
    """Refuse a model whose probabilities would depend on padding or on neighbours.

    1. Its positions must not. 2. Sampled tokens must come from its own distribution, 3. and have
    the probability that training computes.

    Args:
        networks: as `build_networks` made them, on their device, before a process cuts weights
        max_length: longest sequence of the run

    Raises:
        CheckpointError: naming what differs.
    """
    lm = causal_lm(networks.policy)
    if lm.device.type == "cpu" and lm.config._attn_implementation == "flash_attention_2":
        return  # sharded, and not yet where this kernel runs
    # 1. positions
    _check_positions(lm, max_length)
    name = type(lm).__name__
    limit = EXACT if lm.dtype == torch.float32 else ROUNDED
    try:
        prompts = _prompts(lm)
        # 2. sampling
        ids, sampled = _sample(networks, prompts)  # (B, T), (B, T, V)
        alone = torch.stack([_alone(lm, p, row) for p, row in zip(prompts, ids, strict=True)])
        # 3. scoring
        scored = _score(networks, prompts, ids)  # (B, T)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"PPO can't sample from {name} with a cache of its own, or can't score with it "
            f"({type(error).__name__}: {why:.200}); {OTHERWISE}"
        ) from error
    own = alone.gather(-1, ids.unsqueeze(-1)).squeeze(-1)  # (B, T)
    found = {
        "where prompts are padded on the left to sample": (sampled - alone).abs().max().item(),
        "where training computes them again": (scored - own).abs().max().item(),
    }
    for where, difference in found.items():
        if not difference <= limit:
            raise CheckpointError(
                f"{name} gives other probabilities {where} than alone and without padding: they "
                f"differ by up to {difference:.2g}, so PPO would learn from wrong ones; {OTHERWISE}"
            )


def _check_positions(lm: Any, max_length: int) -> None:
    """Positions whose encoding changes with the longest row of a batch."""
    for module in lm.modules():
        kind = getattr(module, "rope_type", None)
        kinds: set[Any] = (set(kind.values()) if isinstance(kind, dict) else {kind}) & MOVING
        if not kinds:
            continue
        rope = module.config.rope_parameters
        bounds = [
            part["original_max_position_embeddings"]
            for part in (rope, *rope.values())
            if isinstance(part, dict) and "original_max_position_embeddings" in part
        ]
        bound = min(bounds, default=module.config.max_position_embeddings)
        if max_length > bound:
            raise CheckpointError(
                f"{type(lm).__name__} encodes positions otherwise in a batch that holds more than "
                f"{bound} tokens in a row ({', '.join(sorted(kinds))}), so a completion's "
                f"probabilities would depend on its neighbours; set max_length: {bound} or less"
            )


def _prompts(lm: Any) -> list[Tensor]:
    """Token ids drawn at random, a different number of them in each."""
    generator = torch.Generator().manual_seed(0)
    rows = lm.get_input_embeddings().weight.shape[0]
    return [torch.randint(rows, (n,), generator=generator).to(lm.device) for n in LENGTHS]


def _sample(networks: Networks, prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) as a rollout samples them, and the distributions they came from (B, T, V)."""
    width, device = max(LENGTHS), prompts[0].device
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0)) for p in prompts])
    mask = torch.arange(width) >= width - torch.tensor(LENGTHS).unsqueeze(1)  # (B, P)
    seen: list[Tensor] = []
    with networks.sampling() as lm, torch.no_grad():
        hook = lm.base_model.register_forward_hook(
            lambda module, args, out: seen.append(out.last_hidden_state[:, -1])
        )
        try:
            completions = generate(
                lm,
                ids,
                mask.to(device),
                draws(0, 0, len(prompts), NEW),
                eos_token_ids=[-1],  # none: all rows are as long
                pad_token_id=0,
            )
        finally:
            hook.remove()
        head = Head.of(lm)
        return completions.ids, torch.stack([head(h).softmax(-1) for h in seen], 1)


@torch.no_grad()
def _alone(lm: Any, prompt: Tensor, completion: Tensor) -> Tensor:
    """Distributions (T, V) of the model by itself: one row, no padding, no cache."""
    ids = torch.cat((prompt, completion)).unsqueeze(0)
    was = lm.training
    lm.eval()
    logits = lm(input_ids=ids, use_cache=False).logits[0]
    lm.train(was)
    return logits[len(prompt) - 1 : -1].float().softmax(-1)


@torch.no_grad()
def _score(networks: Networks, prompts: list[Tensor], ids: Tensor) -> Tensor:
    """Probabilities of tokens (B, T) as a rollout scores them, padded on the right."""
    rows = [torch.cat((p, row)) for p, row in zip(prompts, ids, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor(LENGTHS, device=ids.device)
    sequences = Sequences(padded, lengths, torch.full_like(lengths, NEW))
    return networks("policy", sequences).logprobs.exp().view_as(ids)
