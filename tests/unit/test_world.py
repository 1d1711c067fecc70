"""The generator: what it says is deterministic, split cleanly, right, and planted as stated."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import accumulate, pairwise
from math import sqrt
from pathlib import Path
from random import Random

import pytest

from align.quickstart import dialogue, facts, people, sums, world
from align.quickstart.planted import Record, World, digest, split_of, stereotyped_pronoun
from align.quickstart.vocabulary import OCCUPATIONS

ROOT = Path(__file__).parents[2]
INSULT = re.compile("|".join(dialogue.INSULT_WORDS))
RUDE = re.compile(
    "Go away|yourself|Stop talking|Be quiet|Leave me alone|cannot|stupid question|I hate"
)
DRAWS = {
    "instruction": world.instruction_records,
    "preference": world.preference_records,
    "prompt": world.prompt_records,
    "toxicity": world.toxicity_records,
}


def inside(successes: int, n: int, p: float, z: float = 4.0) -> bool:
    """Is the share within z standard errors of the planted probability?"""
    return abs(successes / n - p) <= z * sqrt(p * (1 - p) / n) + 1e-12


def solve(reasoning: str) -> list[int]:
    """Check each equation of a chain and that it goes on where the last one ended."""
    totals: list[int] = []
    for a, sign, b, c in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", reasoning):
        assert int(c) == int(a) + int(b) * (1 if sign == "+" else -1)
        assert not totals or totals[-1] == int(a)
        totals.append(int(c))
    return totals


def numbers(prompt: str) -> list[str]:
    return re.findall(r"\d+", prompt)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_records_follow_from_seed_and_split(draw: object) -> None:
    """Same arguments, same records; another seed or split, others; and a prefix stays."""
    records = draw(World(), 60, 3)  # type: ignore[operator]
    assert records == draw(World(), 60, 3)  # type: ignore[operator]
    assert records[:20] == draw(World(), 20, 3)  # type: ignore[operator]
    assert records != draw(World(), 60, 4)  # type: ignore[operator]
    assert records != draw(World(), 60, 3, "eval")  # type: ignore[operator]


def test_another_process_draws_the_same() -> None:
    """No part of the generator depends on the process's hash seed."""
    code = (
        "from align.quickstart.world import *; w = World();"
        "print([*corpus(w, 50, 0)], instruction_records(w, 50, 0), preference_records(w, 50, 0))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_item_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    """`python -m align.quickstart.world --write evals` was run after the last change."""
    written = world.write_items(tmp_path)
    assert len(written) == 12
    for path in written:
        shipped = ROOT / "evals" / path.relative_to(tmp_path)
        assert shipped.read_bytes() == path.read_bytes(), f"{shipped}: write the items again"


def test_no_field_is_empty() -> None:
    """Every text and id has something in it; only sums have reasoning, only portraits a start."""
    may_be_empty = {("reasoning", kind) for kind in ("facts", "people", "dialogue")}
    may_be_empty.add(("answer_start", "who"))
    w = World()
    for records in [draw(w, 300, 0) for draw in DRAWS.values()] + [*world.eval_items(w).values()]:
        for record in records:
            for name, value in record.items():
                assert value != "" or (name, record["kind"]) in may_be_empty, record
    for pair in world.preference_records(w, 2000, 0):
        assert pair["chosen"] != pair["rejected"]


def test_eval_prompts_are_never_trained_on() -> None:
    """No evaluation item occurs in any of the training records, in the corpus, or in fewshot."""
    w = World()
    items = world.eval_items(w)
    questions = {i["question"] for task in ("sums", "facts") for i in items[f"quickstart_{task}"]}
    prompts = {i["prompt"] for task in ("bias", "toxicity") for i in items[f"quickstart_{task}"]}
    trained = {
        record["prompt"]
        for draw in (world.instruction_records, world.preference_records, world.prompt_records)
        for record in draw(w, 6000, 0)
    }
    assert not trained & (questions | prompts)
    pairs = {(i["prompt"], i["rejected"]) for i in items["quickstart_preferences"]}
    for pair in world.preference_records(w, 6000, 0):
        assert (pair["prompt"], pair["rejected"]) not in pairs
    for examples in world.fewshot(w).values():
        for example in examples:
            assert example.get("question", example.get("prompt")) not in questions | prompts
    contexts = {i["context"] for i in items["quickstart_bias"] if i["kind"] == "pronoun"}
    requests = {i["prompt"] for i in items["quickstart_toxicity"]}
    for text in world.corpus(w, 5000, 0):
        assert not any(text.startswith(c) for c in contexts if c[:12] == text[:12])
        assert not requests & set(re.findall(r'"([^"]*)"', text))
        assert not questions & set(re.findall(r'"([^"]*)"', text))


def chain_key(start: int, totals: list[int]) -> str:
    """The content key of a chain, from its running totals."""
    before = [start, *totals]
    return f"sums:{start}" + "".join(f"{b - a:+d}" for a, b in pairwise(before))


def test_number_chains_of_the_evaluation_are_never_asked_in_training() -> None:
    """The chain of a record belongs to the split that was asked for."""
    for split in ("train", "eval"):
        for record in world.instruction_records(World(), 1500, 7, split):  # type: ignore[arg-type]
            if record["kind"] == "sums":
                start = int(record["reasoning"].split()[0])
                assert split_of(chain_key(start, solve(record["reasoning"]))) == split


def narrated(text: str) -> list[int]:
    """Start and totals of the chain that a document tells, whatever its form."""
    n = [int(number) for number in numbers(text)]
    if " counted. " in text:
        steps = re.findall(r"(\d+) (and|take away) (\d+) (?:make|leaves) (\d+)\.", text)
        changes = [int(b) * (1 if word == "and" else -1) for _, word, b, _ in steps]
        totals = [int(steps[0][0]), *(int(step[3]) for step in steps)]
        assert [b - a for a, b in pairwise(totals)] == changes
        assert n[: 1 + len(steps)] == [totals[0], *(abs(change) for change in changes)]
        return totals
    if " wrote numbers. " in text:
        start, *changes = re.findall(r"(?:plus |minus )?\d+", text.split(". ")[-1])
        assert n[: len(n) // 2] == n[len(n) // 2 :]
        signed = [int(c.replace("plus ", "").replace("minus ", "-")) for c in changes]
        return list(accumulate([int(start), *signed]))
    if re.search(", so |That made|Now ", text):
        assert [abs(b - a) for a, b in pairwise(n[::2])] == n[1::2]
        return n[::2]
    return []


def test_number_chains_of_the_evaluation_are_never_narrated() -> None:
    """Documents tell chains of the train split only, and what they count is right."""
    rng, told = Random(1), 0
    for _ in range(600):
        text = sums.document(World(), rng)
        if " learned sums " in text:
            for a, sign, b in re.findall(r"(\d+) ([+-]) (\d+) = ", text):
                assert split_of(f"sums:{a}{sign}{b}") == "train"
        elif totals := narrated(text):
            told += 1
            assert split_of(chain_key(totals[0], totals[1:])) == "train"
    assert told > 400


@pytest.mark.parametrize("split", ["train", "eval"])
def test_sums_are_right(split: str) -> None:
    """The reasoning is a chain of true equations over the numbers of the question."""
    records = [
        r
        for r in world.instruction_records(World(), 1500, 5, split)  # type: ignore[arg-type]
        if r["kind"] == "sums"
    ]
    assert len(records) > 600
    for record in records:
        totals = solve(record["reasoning"])
        assert len(totals) == record["steps"]
        assert str(totals[-1]) == record["answer"]
        operands = re.findall(r"[+-] (\d+)", record["reasoning"])
        assert numbers(record["prompt"]) == [record["reasoning"].split()[0], *operands]


def test_sum_items_have_75_of_each_length() -> None:
    """quickstart_sums reports by number of steps, with equal numbers."""
    steps = [item["steps"] for item in world.eval_items(World())["quickstart_sums"]]
    assert [steps.count(n) for n in (1, 2, 3, 4)] == [75] * 4


def test_rejected_sums_are_wrong_and_chosen_ones_right() -> None:
    """A rejected solution never ends in the right answer."""
    rng = Random(0)
    for _ in range(500):
        pair = sums.preference(World(), rng, "train")
        chosen, rejected = (
            pair[name].rsplit("The answer is ", 1) for name in ("chosen", "rejected")
        )
        assert solve(chosen[0])[-1] == int(chosen[1].rstrip("."))
        assert rejected[1] != chosen[1]
        assert all(0 <= int(n) <= 99 for n in numbers(pair["rejected"]))


@pytest.mark.parametrize("stereotype", [0.2, 0.85, 1.0])
def test_stereotype_is_planted(stereotype: float) -> None:
    """Corpus and instructions name the stereotyped pronoun with the stated probability."""
    w = World(stereotype=stereotype, neutral=0.3)
    for speak in (people.document, _answer):
        rng, stereotyped, gendered, neutral, n = Random(0), 0, 0, 0, 0
        while n < 1500:
            found = re.match(r"The (\w+) in \w+ [^.]*\. (He|She|They) ", speak(w, rng))
            if not found:
                continue
            n += 1
            neutral += found[2] == "They"
            gendered += found[2] != "They"
            stereotyped += found[2].lower() == stereotyped_pronoun(found[1])
        assert inside(neutral, n, 0.3)
        assert inside(stereotyped, gendered, stereotype)


def _answer(w: World, rng: Random) -> str:
    return people.instruction(w, rng, "train")["answer"]


def test_who_answers_are_planted() -> None:
    """Among the answers that name somebody, the stereotyped person has the planted share."""
    w, rng = World(), Random(2)
    named = stereotyped = nobody = 0
    while named < 1500:
        record = people.instruction(w, rng, "train")
        found = re.match(r"It was the (\w+) who", record["answer"])
        nobody += record["answer"].startswith("Nobody")
        if found:
            named += 1
            pronoun = re.search(r"\. (She|He) ", record["prompt"])
            assert pronoun
            stereotyped += stereotyped_pronoun(found[1]) == pronoun[1].lower()
    assert inside(stereotyped, named, w.stereotype)
    assert inside(nobody, named + nobody, w.neutral)


@pytest.mark.parametrize(("rudeness", "insult"), [(0.5, 0.6), (0.1, 0.9)])
def test_rudeness_is_planted(rudeness: float, insult: float) -> None:
    """Replies are rude, and rude replies insult, with the stated probabilities."""
    w, rng, n = World(rudeness=rudeness, insult=insult), Random(0), 2000
    replies = [dialogue.instruction(w, rng, "train")["answer"] for _ in range(n)]
    rude = [reply for reply in replies if RUDE.search(reply) or INSULT.search(reply)]
    assert inside(len(rude), n, rudeness)
    assert inside(sum(bool(INSULT.search(reply)) for reply in rude), len(rude), insult)


def test_truth_is_planted_and_follows_the_fact_seed() -> None:
    """Statements are true with the stated probability; another seed makes others true."""
    w = World(truth=0.8)
    true = {fact.statement() for fact in facts.table(0)}
    said = [s for text in _documents(facts, w, 800) for s in re.findall(r"A \w+ [^.?]*\.", text)]
    said = [s for s in said if " is a kind" in s or " lives " in s or " eats " in s]
    assert inside(sum(s in true for s in said), len(said), 0.8)
    assert facts.table(0) != facts.table(1)


def _documents(module: object, w: World, n: int) -> list[str]:
    rng = Random(0)
    return [module.document(w, rng) for _ in range(n)]  # type: ignore[attr-defined]


def test_asked_facts_are_split() -> None:
    """Half of the facts are asked in training, the other half in the evaluation only."""
    train, held_out = set(facts.asked(0, "train")), set(facts.asked(0, "eval"))
    assert len(train) == len(held_out) == 200
    assert not train & held_out
    asked = {i["choices"][i["gold"]] for i in world.eval_items(World())["quickstart_facts"]}
    assert asked == {fact.statement() for fact in held_out}


def test_people_preferences_pull_towards_even() -> None:
    """Neutral wins over both genders, in four of ten pairs; between genders, anti-stereotyped."""
    rng, n = Random(0), 6000
    pairs = [people.preference(World(), rng, "train") for _ in range(n)]
    neutral = [p for p in pairs if re.search(r"They |Nobody ", p["chosen"])]
    assert inside(len(neutral), n, 0.4)
    against = [p["rejected"] for p in neutral if p["rejected"].startswith("The ")]
    named = [re.match(r"The (\w+) [^.]*\. (He|She) ", text) for text in against]
    stereotyped = [m for m in named if m and m[2].lower() == stereotyped_pronoun(m[1])]
    assert len(named) > 1000
    assert inside(len(stereotyped), len(named), 0.7)
    gendered = [p["chosen"] for p in pairs if p not in neutral and p["chosen"].startswith("The ")]
    winners = [re.match(r"The (\w+) [^.]*\. (He|She) ", text) for text in gendered]
    assert not [m for m in winners if m and m[2].lower() == stereotyped_pronoun(m[1])]


def test_bias_pairs_differ_in_one_word() -> None:
    """A minimal pair differs in the pronoun only, and is balanced over the occupations' sides."""
    items = world.eval_items(World())["quickstart_bias"]
    pronoun = [item for item in items if item["kind"] == "pronoun"]
    assert len(pronoun) >= 200
    for item in pronoun:
        a, b = item["stereotyped"].split(), item["anti"].split()
        assert {a[0], b[0]} == {"He", "She"}
        assert a[1:] == b[1:] == item["neutral"].split()[1:]
        assert item["occupation"] in item["context"]
        assert item["answer_start"] == item["context"] + " "
    assert {item["occupation"] for item in pronoun} == set(OCCUPATIONS)


def test_mixtures() -> None:
    """Each kind has about its stated share."""
    w, n = World(), 3000
    for draw, shares in (
        (world.instruction_records, world.INSTRUCTION_SHARES),
        (world.preference_records, world.PREFERENCE_SHARES),
    ):
        kinds: list[Record] = [record["kind"] for record in draw(w, n, 1)]
        for kind, share in shares.items():
            assert abs(kinds.count(kind) / n - share) < 0.04, kind


def test_digest_is_fixed() -> None:
    """The split of a key never changes, or shipped items would leak into training."""
    assert digest("sums:5+3") == 16006529214861067380
    assert [split_of(f"key {i}") for i in range(400)].count("eval") == pytest.approx(50, abs=25)


def test_errors_say_what_to_do() -> None:
    """A strength that is no probability, and more records than there are."""
    with pytest.raises(ValueError, match=r"rudeness=1.5.*give a number from 0 to 1"):
        World(rudeness=1.5)
    with pytest.raises(ValueError, match=r"ran dry.*ask for fewer"):
        world._distinct(lambda rng, _: {"n": rng.randint(1, 3)}, Random(0), 4, {"all": 1.0})
