"""Reward of a checkpoint: samples for the prompts that its PPO run held out, scored.

The same prompts and the same random numbers for every checkpoint, so that two of them can be
compared prompt by prompt.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from align import checkpoint
from align.checkpoint.save import located
from align.data.render import as_messages
from align.errors import EvalError
from align.evaluation import stats

SAMPLES = 4  # completions of a prompt; their mean is the prompt's score
UNREWARDED: dict[str, Any] = {
    **dict.fromkeys(("reward", "reward_ci95", "gain", "gain_ci95")),
    "prompts": 0,
}


class HeldOut(NamedTuple):
    """What is asked, and how it is answered."""

    prompts: list[Any]
    """As in the data: texts, or lists of messages."""
    max_new_tokens: int
    temperature: float
    reward_model: str | None
    """The reward model that the run was trained with."""


def held_out(model: Path) -> HeldOut:
    """The prompts that the PPO run behind a checkpoint held out, drawn again as it drew them.

    Raises:
        EvalError: lineage.json names no PPO run with held-out prompts.
    """
    lineage = checkpoint.read_lineage(model)
    config = located(lineage.get("config") or {}, model)
    if lineage.get("stage") != "ppo" or not config.get("eval_fraction"):
        raise EvalError(
            f"{model} has no lineage.json of a PPO run with eval_fraction above 0, so no prompts "
            "are known that were held out; leave --reward-model out, or give PPO's checkpoint as "
            "--model"
        )
    from align.data import load_mixture

    mixture = load_mixture(
        config["datasets"],
        "prompt-only",
        seed=config["seed"],
        limit=config["dataset_limit"],
        eval_fraction=config["eval_fraction"],
        invalid_fraction=config["invalid_fraction"],
    )
    return HeldOut(
        [record["prompt"] for record in mixture.eval[: config["eval_prompts"]]],
        config["max_completion_length"],
        config["temperature"],
        config.get("reward_model"),
    )


def prompt_scores(
    model: Path,
    asked: HeldOut,
    scorer: Any,
    *,
    cache: Path | None = None,
    seed: int = 0,
    batch_size: int | str = "auto",
) -> list[float]:
    """Mean score of ``SAMPLES`` completions of each prompt.

    ``scorer`` is an `align.scoring.RewardScorer`. A completion that fills ``max_new_tokens`` counts
    as cut: the scorer sees no EOS.

    Raises:
        EvalError: a checkpoint without a chat template, which can't be asked.
    """
    from align.evaluation import subject

    info = checkpoint.inspect_checkpoint(str(model))
    if not info.has_chat_template:
        raise EvalError(f"{model} has no chat template, so it can't answer the held-out prompts")
    judged = subject.load(str(model), info, cache=cache, seed=seed, batch_size=batch_size)
    assert isinstance(judged, subject.LanguageModel)
    settings = {
        "until": [],
        "max_gen_toks": asked.max_new_tokens,
        "do_sample": True,
        "temperature": asked.temperature,
    }
    rows = [(prompt, k) for prompt in asked.prompts for k in range(SAMPLES)]
    contexts = [judged.lm.apply_chat_template(as_messages(prompt)) for prompt, _ in rows]
    texts = judged.answer(
        [subject.Request(c, "", settings, k) for c, (_, k) in zip(contexts, rows, strict=True)]
    )
    judged.responses.close()
    lengths = [len(ids) for ids in judged.lm.tokenizer(texts, add_special_tokens=False).input_ids]
    ended = [length < asked.max_new_tokens for length in lengths]
    scores = scorer([prompt for prompt, _ in rows], texts, ended).tolist()
    return [mean(scores[i : i + SAMPLES]) for i in range(0, len(scores), SAMPLES)]


def as_reward(scores: Sequence[float], start: Sequence[float] | None) -> dict[str, Any]:
    """A point's reward: mean with its interval, and the gain over ``start``, paired by prompt."""
    own = stats.mean_with_ci(list(scores), kind="t")
    gain = stats.paired(list(scores), list(start)) if start is not None else None
    return {
        "reward": own.value,
        "reward_ci95": _ends(own.ci95),
        "gain": gain.delta if gain else None,
        "gain_ci95": _ends(gain.ci95) if gain else None,
        "prompts": own.n,
    }


def _ends(interval: stats.Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def logged_rewards(run: Path) -> dict[str, dict[str, Any]]:
    """Stage -> its reward as PPO's own held-out evaluation logged it (samples.jsonl).

    PPO's start is the SFT policy, its end the checkpoint; both answered the same prompts.
    """
    path = run / "ppo" / "samples.jsonl"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    by_rollout: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_rollout.setdefault(row["rollout"], []).append(row)
    if not by_rollout:
        return {}
    last = max(by_rollout)
    end = [row["score"] for row in by_rollout[last]]
    if 0 not in by_rollout or last == 0:
        return {"ppo" if last else "sft": as_reward(end, None)}
    start = [row["score"] for row in by_rollout[0]]
    same = [r["prompt"] for r in by_rollout[0]] == [r["prompt"] for r in by_rollout[last]]
    return {"sft": as_reward(start, None), "ppo": as_reward(end, start if same else None)}
