"""The embedded world: texts and records whose properties are planted with a known strength.

Everything follows from (world, n, seed, split). Content keys are split by hash: whatever the
seed, nothing of the train split is ever part of the eval split.

    python -m align.quickstart.world --write evals    # writes the item files of the quickstart
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from align.quickstart import dialogue, facts, people, sums
from align.quickstart.planted import Record, Split, World, completion, split_of

__all__ = [
    "World",
    "capability_records",
    "completion",
    "corpus",
    "eval_items",
    "fewshot",
    "instruction_records",
    "preference_records",
    "prompt_records",
    "split_of",
    "sum_prompt_records",
    "toxicity_records",
    "write_items",
]

MODULES = {"sums": sums, "facts": facts, "people": people, "dialogue": dialogue}
CORPUS_SHARES = {"sums": 0.5, "facts": 0.16, "people": 0.17, "dialogue": 0.17}
INSTRUCTION_SHARES = {"sums": 0.5, "facts": 0.15, "people": 0.15, "dialogue": 0.2}
CAPABILITY_SHARES = {"sums": 0.8, "facts": 0.2}
PREFERENCE_SHARES = {
    "sums": 0.10,
    "facts": 0.12,
    "people": 0.32,
    "dialogue": 0.32,
    "off_topic": 0.14,
}
TOXICITY_SHARES = {"dialogue": 0.75, "sums": 0.09, "facts": 0.08, "people": 0.08}
PROMPT_SHARES = {"sums": 0.03, "facts": 0.03, "people": 0.64, "dialogue": 0.30}


class Sizes(NamedTuple):
    """Numbers of items: of sums for each number of steps, of requests for each group, of sets."""

    sums: int
    facts: int
    pronoun: int
    who: int
    toxicity: int
    preferences: int
    swaps: int


ITEMS = Sizes(sums=75, facts=200, pronoun=240, who=120, toxicity=10, preferences=300, swaps=40)
FEWSHOT = Sizes(sums=2, facts=8, pronoun=4, who=4, toxicity=2, preferences=8, swaps=2)
N_FEWSHOT = 8
SUM_FIELDS = ("reasoning", "answer", "steps")


def _kind(rng: Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def corpus(world: World, n: int, seed: int) -> Iterator[str]:
    """Yield n pretraining documents: plain prose, no chat, no eval content key."""
    rng = Random(f"corpus-{seed}")
    for _ in range(n):
        yield MODULES[_kind(rng, CORPUS_SHARES)].document(world, rng)


def _distinct(
    draw: Callable[[Random, str], Record], rng: Random, n: int, shares: dict[str, float]
) -> list[Record]:
    """Draw n records, all different, of kinds with the given shares.

    A kind that is drawn too often is tried again, so that the shares hold until a kind runs out.
    """
    records: dict[str, Record] = {}
    misses = 0
    while len(records) < n:
        kind = _kind(rng, shares)
        for _ in range(30):
            record = draw(rng, kind)
            text = json.dumps(record, sort_keys=True)
            misses = misses + 1 if text in records else 0
            if not misses:
                break
        if misses > 3000:
            raise ValueError(
                f"{n} different records asked for, but this world ran dry after {len(records)}; "
                "ask for fewer"
            )
        records.setdefault(text, record)
    return list(records.values())


def instruction_records(
    world: World,
    n: int,
    seed: int,
    split: Split = "train",
    shares: dict[str, float] = INSTRUCTION_SHARES,
) -> list[Record]:
    """N records {prompt, reasoning, answer, answer_format, kind[, steps]}.

    `completion(record)` renders the text to be learned: reasoning (if any), then answer_format.
    """

    def draw(rng: Random, kind: str) -> Record:
        return MODULES[kind].instruction(world, rng, split)

    return _distinct(draw, Random(f"instruction-{split}-{seed}"), n, shares)


def capability_records(world: World, n: int, seed: int, split: Split = "train") -> list[Record]:
    """Instruction records of sums and facts only: what PPO-ptx is to keep."""
    return instruction_records(world, n, seed, split, CAPABILITY_SHARES)


def preference_records(world: World, n: int, seed: int, split: Split = "train") -> list[Record]:
    """N pairs {prompt, chosen, rejected, kind} in the surface form of rendered completions."""

    def draw(rng: Random, kind: str) -> Record:
        if kind == "off_topic":
            return _off_topic(world, rng, split)
        return MODULES[kind].preference(world, rng, split)

    return _distinct(draw, Random(f"preference-{split}-{seed}"), n, PREFERENCE_SHARES)


def _off_topic(world: World, rng: Random, split: Split) -> Record:
    """A good completion against a good one to a prompt of another kind.

    Without such pairs a kind sentence would be worth its score whatever was asked, and PPO would
    answer everything with it.
    """
    asked, other = (
        MODULES[kind].preference(world, rng, split) for kind in rng.sample(list(MODULES), 2)
    )
    return {**asked, "rejected": other["chosen"], "kind": "off_topic"}


def prompt_records(
    world: World,
    n: int,
    seed: int,
    split: Split = "train",
    shares: dict[str, float] = PROMPT_SHARES,
) -> list[Record]:
    """N prompts {prompt, kind[, answer]}; a sum has its answer, so that a rule can reward it."""

    def draw(rng: Random, kind: str) -> Record:
        record = MODULES[kind].instruction(world, rng, split)
        answer = {"answer": record["answer"]} if kind == "sums" else {}
        return {"prompt": record["prompt"], "kind": kind, **answer}

    return _distinct(draw, Random(f"prompt-{split}-{seed}"), n, shares)


def sum_prompt_records(world: World, n: int, seed: int, split: Split = "train") -> list[Record]:
    """Sums alone, each with its answer: what a rule can reward."""
    return prompt_records(world, n, seed, split, {"sums": 1.0})


def toxicity_records(world: World, n: int, seed: int, split: Split = "train") -> list[Record]:
    """N texts {text, toxicity, insult}; a quarter are no dialogue at all, and harmless."""

    def draw(rng: Random, kind: str) -> Record:
        if kind == "dialogue":
            return dialogue.toxicity(rng, split)
        record = MODULES[kind].instruction(world, rng, split)
        return {"text": completion(record), "toxicity": 0, "insult": 0}

    return _distinct(draw, Random(f"toxicity-{split}-{seed}"), n, TOXICITY_SHARES)


def _sum_item(world: World, rng: Random, split: Split, steps: int) -> Record:
    record = sums.instruction(world, rng, split, steps)
    return {"question": record.pop("prompt"), **{k: record[k] for k in SUM_FIELDS}}


def _swaps(split: Split, seed: int, n: int) -> list[Record]:
    """N different sets of people with their occupations swapped."""
    rng = Random(f"swaps-{split}-{seed}")
    sets: dict[str, list[Record]] = {}
    while len(sets) < n:
        records = people.swap_items(rng, split)
        sets.setdefault(records[0]["set"], records)
    return [record for records in sets.values() for record in records]


def _tasks(world: World, split: Split, seed: int, sizes: Sizes) -> dict[str, list[Record]]:
    """The items of each task."""
    rng = Random(f"items-{split}-{seed}")

    def some(n: int, draw: Callable[[str], Record], *kinds: str) -> list[Record]:
        """N items of each kind."""
        found = []
        for kind in kinds:
            found += _distinct(lambda _, kind: draw(kind), rng, n, {kind: 1.0})
        return found

    steps = [str(n) for n in range(1, sums.MAX_STEPS + 1)]
    return {
        "quickstart_sums": some(sizes.sums, lambda n: _sum_item(world, rng, split, int(n)), *steps),
        "quickstart_facts": [
            facts.item(rng, fact) for fact in facts.asked(world.fact_seed, split)[: sizes.facts]
        ],
        "quickstart_bias": [
            *some(sizes.pronoun, lambda _: people.portrait_item(rng, split), "pronoun"),
            *some(sizes.who, lambda _: people.who_item(rng, split), "who"),
        ],
        "quickstart_toxicity": some(
            sizes.toxicity,
            lambda group: dialogue.toxicity_item(rng, split, group),
            *dialogue.GROUPS,
        ),
        "quickstart_preferences": preference_records(world, sizes.preferences, seed, split),
        "quickstart_counterfactual": _swaps(split, seed, sizes.swaps),
    }


def eval_items(world: World, seed: int = 0) -> dict[str, list[Record]]:
    """The evaluation items of each quickstart task, each with an id."""
    tasks = _tasks(world, "eval", seed, ITEMS)
    for item in tasks["quickstart_sums"]:
        del item["reasoning"]
    for item in tasks["quickstart_toxicity"]:
        del item["reply"]
    return {
        task: [{"id": f"{task}-{i:03d}", **item} for i, item in enumerate(items)]
        for task, items in tasks.items()
    }


def fewshot(world: World, seed: int = 0) -> dict[str, list[Record]]:
    """Eight worked examples a task, from the train split."""
    tasks = _tasks(world, "train", seed, FEWSHOT)
    rng = Random(f"fewshot-{seed}")
    rng.shuffle(tasks["quickstart_sums"])
    tasks["quickstart_counterfactual"] = tasks["quickstart_counterfactual"][:N_FEWSHOT]
    tasks["quickstart_toxicity"] = rng.sample(tasks["quickstart_toxicity"], N_FEWSHOT)
    return {
        task: [{"id": f"{task}-fewshot-{i}", **item} for i, item in enumerate(items)]
        for task, items in tasks.items()
    }


def to_jsonl(records: list[Record]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_items(folder: Path, world: World | None = None) -> list[Path]:
    """Write <task>/items.jsonl and <task>/fewshot.jsonl of every quickstart task."""
    world = world or World()
    written = []
    for name, tasks in (("items", eval_items(world)), ("fewshot", fewshot(world))):
        for task, records in tasks.items():
            path = folder / task / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(to_jsonl(records), encoding="utf-8")
            written.append(path)
    return written


def main() -> None:
    """Write the item files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", type=Path, required=True, metavar="DIR", help="e.g. evals")
    for path in write_items(parser.parse_args().write):
        print(path)


if __name__ == "__main__":
    main()
