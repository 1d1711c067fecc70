"""Reward model with TRL's RewardTrainer; centring; the report on held-out pairs.

Bradley-Terry on preference pairs (InstructGPT, 2203.02155, equation 1): loss = -log sigmoid(score
of chosen - score of rejected), both read at EOS.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from align.callbacks import add_callbacks
from align.checkpoint import eos_token_ids, load_causal, lora_config, quiet_peft
from align.checkpoint.save import portable, write_json
from align.data import render
from align.encoding import encode
from align.errors import DataError
from align.scoring import RewardScorer
from align.training import OurTrainer, arguments, say

REPORT = "reward_report.json"
BINS = 10


# ---------------------------------------------------------------- training


class Tokenised(NamedTuple):
    """Pairs as tokens."""

    rows: list[dict[str, list[int]]]
    """``chosen_ids`` and ``rejected_ids``: prompt, completion, EOS."""
    kept: list[int]
    """Which record each row is."""
    overlong: int
    """Pairs of which one side is longer than max_length, left out."""


def tokenise(
    records: Sequence[Mapping[str, Any]], tokenizer: Any, *, max_length: int, eos_ids: Sequence[int]
) -> Tokenised:
    """Rows for RewardTrainer, which would filter long pairs without a word."""
    prompts = [render.prompt_messages(record) for record in records]
    chosen = encode(tokenizer, prompts, [r["chosen"] for r in records], eos_ids)
    rejected = encode(tokenizer, prompts, [r["rejected"] for r in records], eos_ids)
    rows, kept = [], []
    for i, (good, bad) in enumerate(zip(chosen, rejected, strict=True)):
        row = {"chosen_ids": [*good.prompt, *good.completion]}
        row["rejected_ids"] = [*bad.prompt, *bad.completion]
        if max(map(len, row.values())) <= max_length:
            rows.append(row)
            kept.append(i)
    return Tokenised(rows, kept, len(records) - len(rows))


def by_prompt(records: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Rows grouped by prompt: pairs of one prompt belong in one batch.

    Apart, a prompt is seen in several steps of an epoch and is overfitted (InstructGPT, section
    3.5).
    """
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(json.dumps(record["prompt"], sort_keys=True), []).append(i)
    return list(groups.values())


class Trainer(OurTrainer, RewardTrainer):
    """TRL's RewardTrainer on pairs that are tokenised already, in our order."""


def build_trainer(config: Any, model: Any, tokenizer: Any, mixture: Any) -> Trainer:
    """A trainer for a mixture (``.train`` and ``.eval``: preference records).

    Raises:
        DataError: every pair is longer than max_length.
        CheckpointError: the chat template does not fit (`align.encoding.encode`).
    """
    options = {"max_length": config.max_length, "eos_ids": eos_token_ids(model.config, tokenizer)}
    train = tokenise(mixture.train, tokenizer, **options)
    held_out = tokenise(mixture.eval, tokenizer, **options)
    say(
        f"data: {len(train.rows)} pairs to train on, {len(held_out.rows)} held out; "
        f"{train.overlong + held_out.overlong} longer than {config.max_length} tokens left out"
    )
    if not train.rows:
        raise DataError(
            f"none of the {len(mixture.train)} pairs fits into max_length {config.max_length}; "
            "raise it, or choose shorter data"
        )
    with quiet_peft():
        trainer = Trainer(
            model=model,
            args=RewardConfig(**arguments(config), max_length=None),
            train_dataset=Dataset.from_list(train.rows),
            eval_dataset=Dataset.from_list(held_out.rows) if held_out.rows else None,
            processing_class=tokenizer,
            peft_config=lora_config(config, "SEQ_CLS", model),
        )
    trainer.lengths = [max(map(len, row.values())) for row in train.rows]
    trainer.groups = by_prompt([mixture.train[i] for i in train.kept])
    add_callbacks(trainer, config)
    return trainer


# ---------------------------------------------------------------- centring


def center(folder: Path, config: Any, mixture: Any) -> dict[str, Any]:
    """Shift scores so that the parent policy's own samples score 0 on average (2009.01325, B.1).

    The heads of causal architectures have no bias, so the shift is stored as ``score_offset`` in
    config.json, where `RewardScorer` and the value model of PPO read it. A plain
    ``from_pretrained`` keeps the number but does not subtract it: its scores differ from ours by
    this constant, its rankings not at all.
    """
    scorer = RewardScorer.load(str(folder), dtype=config.dtype)
    prompts = _short_prompts(scorer, config, [*mixture.eval, *mixture.train])
    completions, ended = sample(config, prompts) if prompts else ([], [])
    rows = scorer.encode(prompts, completions, ended)
    rows = [row for row in rows if len(row) <= scorer.context]
    if not rows:  # center_samples: 0, or no prompt leaves room
        return {"score_offset": 0.0, "samples": 0}
    scores = scorer.score_ids(rows)
    offset = scores.mean().item()
    path = folder / "config.json"
    write_json(path, {**json.loads(path.read_text()), "score_offset": offset})
    return {
        "score_offset": offset,
        "samples": len(rows),
        "samples_std": scores.std().item() if len(rows) > 1 else None,
        "samples_ended": sum(ended),
    }


def _short_prompts(scorer: RewardScorer, config: Any, records: Sequence[Any]) -> list[Any]:
    """The first prompts that leave room for a completion in the context."""
    room = scorer.context - config.center_max_new_tokens
    found: list[Any] = []
    for record in records:
        if len(found) == config.center_samples:
            break
        (alone,) = scorer.encode([record["prompt"]], [""])
        if len(alone) < room:
            found.append(record["prompt"])
    return found


def sample(config: Any, prompts: Sequence[Any], batch: int = 64) -> tuple[list[str], list[bool]]:
    """Completions of the parent policy at temperature 1, and whether each ended by itself."""
    policy, tokenizer = load_causal(
        config.model_name_or_path,
        config.dtype,
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
        chat_template=config.chat_template,
    )
    policy.generation_config.max_length = None  # ours is in new tokens
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    eos = eos_token_ids(policy, tokenizer)
    torch.manual_seed(config.seed)
    completions: list[str] = []
    ended: list[bool] = []
    for start in range(0, len(prompts), batch):
        rows = _generate(policy, tokenizer, prompts[start : start + batch], eos, config)
        for row in rows:
            stop = next((i for i, token in enumerate(row) if token in eos), None)
            completions.append(tokenizer.decode(row[:stop], skip_special_tokens=True))
            ended.append(stop is not None)
    return completions, ended


def _generate(
    policy: Any, tokenizer: Any, prompts: Sequence[Any], eos: list[int], config: Any
) -> list[list[int]]:
    from transformers import GenerationConfig

    texts = [
        tokenizer.apply_chat_template(
            render.as_messages(prompt), tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    batch = tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    ).to(policy.device)
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=config.center_max_new_tokens,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():
        output = policy.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=settings,
        )
    return output[:, batch["input_ids"].shape[1] :].tolist()


# ---------------------------------------------------------------- report


def evidence(folder: Path, config: Any, mixture: Any) -> dict[str, Any]:
    """Centre the saved reward model and write its report; what lineage.json says of both."""
    centred = center(folder, config, mixture)
    found = report(folder, config, mixture)
    say(summary(found, centred))
    return {"held_out": found["accuracy"], "centred": centred}


def report(folder: Path, config: Any, mixture: Any) -> dict[str, Any]:
    """Write reward_report.json: what the saved reward model is worth on held-out pairs."""
    scorer = RewardScorer.load(str(folder), dtype=config.dtype)
    pairs = mixture.eval
    good = scorer.encode([p["prompt"] for p in pairs], [p["chosen"] for p in pairs])
    bad = scorer.encode([p["prompt"] for p in pairs], [p["rejected"] for p in pairs])
    fits = [
        i
        for i, both in enumerate(zip(good, bad, strict=True))
        if max(map(len, both)) <= min(config.max_length, scorer.context)
    ]
    chosen, rejected = (scorer.score_ids([rows[i] for i in fits]) for rows in (good, bad))
    margins = (chosen - rejected).tolist()
    kept = [pairs[i] for i in fits]
    found = {
        "pairs": len(fits),
        "overlong": len(pairs) - len(fits),
        "accuracy": accuracy(margins),
        "by_card": _by(kept, margins, "card"),
        "by_kind": _by(kept, margins, "kind"),
        "calibration": calibration(margins),
        "length_only": length_baseline(mixture.train, kept),
        "mean_margin": _mean(margins),
        "mean_chosen": _mean(chosen.tolist()),
        "mean_rejected": _mean(rejected.tolist()),
        "sensitivity": sensitivity(scorer, [good[i] for i in fits]),
    }
    found = portable(found, Path(config.output_dir))  # cards that are files
    write_json(folder / REPORT, found)
    return found


def accuracy(margins: Sequence[float]) -> dict[str, Any]:
    """Share of pairs with chosen above rejected, a tie counting half; Wilson's 95% interval."""
    n = len(margins)
    right = sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins)
    if n == 0:
        return {"value": None, "ci95": None, "n": 0}
    p, z = right / n, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"value": p, "ci95": [middle - half, middle + half], "n": n}


def _by(
    pairs: Sequence[Mapping[str, Any]], margins: Sequence[float], key: str
) -> dict[str, dict[str, Any]]:
    names = sorted({str(pair.get(key)) for pair in pairs})
    return {
        name: accuracy([m for m, p in zip(margins, pairs, strict=True) if str(p.get(key)) == name])
        for name in names
    }


def calibration(margins: Sequence[float]) -> dict[str, Any]:
    """Expected calibration error of sigmoid(|margin|) as the probability of being right.

    Bins of equal width over [0.5, 1] (Guo et al., 1706.04599, section 2).
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for margin in margins:
        p = 1 / (1 + math.exp(-min(abs(margin), 50.0)))
        right = 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
        bins[min(int((p - 0.5) * 2 * BINS), BINS - 1)].append((p, right))
    rows = [
        {
            "confidence": sum(p for p, _ in b) / len(b),
            "accuracy": sum(right for _, right in b) / len(b),
            "n": len(b),
        }
        for b in bins
        if b
    ]
    gaps = [abs(row["confidence"] - row["accuracy"]) * row["n"] for row in rows]
    return {"ece": sum(gaps) / len(margins) if margins else None, "bins": rows}


def length_baseline(
    train: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Accuracy of "the longer one" or "the shorter one", whichever is right on training pairs."""

    def gaps(records: Sequence[Mapping[str, Any]]) -> list[float]:
        return [float(len(r["chosen"]) - len(r["rejected"])) for r in records]

    longer = accuracy(gaps(train))["value"]
    sign = -1.0 if longer is not None and longer < 0.5 else 1.0
    rule = "longer" if sign > 0 else "shorter"
    return {"rule": rule, **accuracy([sign * gap for gap in gaps(pairs)])}


def sensitivity(scorer: RewardScorer, rows: Sequence[list[int]], most: int = 64) -> dict[str, Any]:
    """How scores move without EOS (should), and with padding and batching (should not)."""
    rows = rows[:most]
    if not rows:
        return {"eos_mean_abs": None, "padding_max_abs": None, "batching_max_abs": None, "n": 0}
    together = scorer.score_ids(rows)
    without_eos = scorer.score_ids([row[:-1] for row in rows])
    alone = torch.cat([scorer.score_ids([row]) for row in rows])
    return {
        "eos_mean_abs": (together - without_eos).abs().mean().item(),
        "padding_max_abs": (together - scorer.score_ids(rows, padding=16)).abs().max().item(),
        "batching_max_abs": (together - alone).abs().max().item(),
        "n": len(rows),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def summary(found: Mapping[str, Any], centred: Mapping[str, Any]) -> str:
    """The report in one line."""
    right = found["accuracy"]
    if right["value"] is None:
        return "held out: no pairs, accuracy not measured"
    low, high = right["ci95"]
    shift = f"; {-centred['score_offset']:+.3f} centres it" if centred["samples"] else ""
    return (
        f"held out: accuracy {right['value']:.3f} [{low:.3f}, {high:.3f}] on {right['n']} pairs, "
        f"ECE {found['calibration']['ece']:.3f}, length alone {found['length_only']['value']:.3f}"
        f"{shift}"
    )
