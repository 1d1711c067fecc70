"""What goes wrong in a run of PPO: what is left out and counted, what is said, what stops it."""

import json
import math
import resource
import time
from pathlib import Path

import ppo_tiny
import pytest
import torch

from align import checkpoint
from align.errors import ConfigError, DataError, RunError
from align.ppo.build import build_rewards
from align.ppo.generate import Completions


def weights(trainer) -> dict[str, torch.Tensor]:
    networks = trainer.accelerator.unwrap_model(trainer.networks)
    return {n: p.detach().clone() for n, p in networks.named_parameters() if p.requires_grad}


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- losses


def test_one_loss_that_is_no_number_is_skipped_and_counted(tmp_path):
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path))
    loss, calls = trainer.learner._loss, []

    def broken(which, *rest):
        calls.append(which)
        part = loss(which, *rest)
        return part._replace(loss=part.loss * (math.nan if len(calls) == 2 else 1))

    trainer.learner._loss = broken
    trainer.train()
    assert trainer.progress.skipped == 1
    assert metrics(tmp_path)[-1]["eval/n"] == 3
    assert all(p.isfinite().all() for p in weights(trainer).values())


def spoil_losses(learner) -> None:
    """Every loss is NaN from now on."""
    loss = learner._loss

    def broken(*arguments):
        part = loss(*arguments)
        return part._replace(loss=part.loss * math.nan)

    learner._loss = broken


def test_losses_that_are_never_numbers_stop_the_run(tmp_path):
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path, total_episodes=80))
    spoil_losses(trainer.learner)
    with pytest.raises(RunError, match="no finite number in 5 optimizer steps in a row"):
        trainer.train()


def test_losses_that_are_never_numbers_stop_a_run_of_few_steps_too(tmp_path):
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path, num_ppo_epochs=1))
    spoil_losses(trainer.learner)
    with pytest.raises(RunError, match="no finite number in all 2 optimizer steps, so nothing"):
        trainer.train()


def test_a_policy_of_no_numbers_is_never_judged_or_saved(tmp_path):
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path, save_steps=1, eval_steps=1))
    learn = trainer.learner.learn

    def spoil(*arguments):
        learnt = learn(*arguments)
        next(trainer.networks.policy.parameters()).data.mul_(math.nan)
        return learnt

    trainer.learner.learn = spoil
    with pytest.raises(RunError, match=r"no numbers to 3 of 3 completions: .*lower learning_rate"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "length, kind", [(1, "all completions empty"), (8, "no completion has a stop token")]
)
def test_degenerate_batches_go_through(tmp_path, length, kind):
    trainer = ppo_tiny.trainer(
        ppo_tiny.config(tmp_path, truncated="bootstrap", missing_eos_penalty=1.0)
    )

    def degenerate(prompts, stream) -> Completions:
        ids = torch.full((len(prompts), 8), 7)
        if length == 1:
            ids[:, 0] = 1
        mask = torch.arange(8).expand(len(prompts), 8) < length
        return Completions(ids * mask, mask, torch.full((len(prompts),), length == 1))

    trainer._complete = degenerate
    trainer.train()
    line = metrics(tmp_path)[-2]
    assert line["truncation_rate"] == float(length == 8)
    assert math.isfinite(line["loss/policy"]) and math.isfinite(line["score"])


def test_prompts_that_do_not_fit_are_left_out_and_none_at_all_is_an_error(tmp_path):
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path, max_length=20))
    assert trainer.too_long == 3 and len(trainer.prompts) == 3
    with pytest.raises(DataError, match="none of 6 prompts fits into 1 tokens"):
        ppo_tiny.trainer(ppo_tiny.config(tmp_path, max_length=9))


def test_a_prompt_longer_than_the_context_is_said_once(tmp_path, capsys):
    ppo_tiny.trainer(ppo_tiny.config(tmp_path, max_length=20)).train()
    said = capsys.readouterr().err
    assert said.count("3 prompts are too long for max_length and left out") == 1


# ---------------------------------------------------------------- completions without a score


def all_cut(trainer, *rollouts: int) -> None:
    """No completion has a stop token in these rollouts, every one has in the others."""

    def complete(prompts, stream) -> Completions:
        mask = torch.ones(len(prompts), 8, dtype=torch.bool)
        ended = torch.full((len(prompts),), stream not in rollouts)
        ids = torch.full((len(prompts), 8), 7)
        ids[ended, -1] = 1
        return Completions(ids, mask, ended)

    trainer._complete = complete


@pytest.mark.parametrize(
    "truncated, cut, warned",
    [
        ("bootstrap", range(8), True),
        ("bootstrap", (1, 2, 3), True),
        ("bootstrap", (0, 1, 3, 4, 6, 7), False),  # never three in a row
        ("score", range(8), False),  # a cut completion has a score
    ],
)
def test_completions_that_never_end_are_said_once_and_kept(
    tmp_path, capsys, truncated, cut, warned
):
    settings = ppo_tiny.config(
        tmp_path, truncated=truncated, total_episodes=64, num_ppo_epochs=1, save_steps=2
    )
    trainer = ppo_tiny.trainer(settings, eval_records=[])
    all_cut(trainer, *cut)
    trainer.train()
    line = "warning: 100% of the completions of 3 rollouts in a row were cut at 8 tokens"
    assert capsys.readouterr().err.count(line) == int(warned)
    kept = trainer.evidence()["warnings"]
    assert len(kept) == int(warned)
    if warned:
        assert "raise max_completion_length, set truncated: score, or train the SFT" in kept[0]
        newest = checkpoint.newest_complete(tmp_path)
        saved = json.loads((newest / "state.json").read_text())["progress"]
        assert saved["warnings"] == kept  # a resumed run does not say it again


# ---------------------------------------------------------------- rewards

FUNCTIONS = """
import time

def raises(prompts, completions, records):
    raise KeyError("no such word")

def too_few(prompts, completions, records):
    return [0.0] * (len(completions) - 1)

def nothing(prompts, completions, records):
    return None

def not_a_number(prompts, completions, records):
    return [float("nan")] + [0.0] * (len(completions) - 1)

def complex_ones(prompts, completions, records):
    return [1j] * len(completions)

def strings(prompts, completions, records):
    return ["0.5"] * len(completions)

def too_large(prompts, completions, records):
    return [1e300] * len(completions)

def hangs(prompts, completions, records):
    time.sleep(30)

def late(prompts, completions, records, calls=[]):
    calls.append(1)
    return [0.0] * len(completions) if len(calls) < 4 else [1 / 0]
"""


@pytest.mark.parametrize(
    "name, message",
    [
        ("raises", r"raised KeyError: 'no such word'"),
        ("too_few", r"returned scores of shape \(2,\) for 3 completions"),
        ("nothing", "returned None: not a list of numbers"),
        ("not_a_number", r"returned nan for 1 of 3 completions, first for '.*'; a score must be"),
        ("complex_ones", r"returned \[1j, 1j, 1j\]: not a list of numbers"),
        ("strings", r"returned \['0.5', '0.5', '0.5'\]: not a list of numbers"),
        ("too_large", r"returned inf for 3 of 3 completions.*must be finite in float32"),
        ("hangs", r"gave no scores within 0.2 s; make it faster or raise reward_timeout"),
    ],
)
def test_a_reward_function_that_fails_stops_the_run_and_is_named(tmp_path, name, message):
    (tmp_path / "rules.py").write_text(FUNCTIONS)
    spec = f"{tmp_path / 'rules.py'}:{name}"
    settings = ppo_tiny.config(tmp_path / "out", reward_functions={spec: 1.0}, reward_timeout=0.2)
    trainer = ppo_tiny.trainer(settings)
    trainer.reward = build_rewards(settings)
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"reward {spec} {message}"):
        trainer.train()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "form", ["np.array({})", "torch.tensor({})", "[np.float32(x) for x in {}]"]
)
def test_arrays_and_tensors_are_lists_of_numbers(tmp_path, form):
    """And what a function does to its arguments stays with it."""
    (tmp_path / "rules.py").write_text(
        "import numpy as np, torch\n"
        "def rule(prompts, completions, records):\n"
        "    n = len(completions)\n"
        "    [each.clear() for each in (prompts, completions, *records)]\n"
        f"    return {form.format('[0.5] * n')}\n"
    )
    spec = f"{tmp_path / 'rules.py'}:rule"
    scorer = build_rewards(ppo_tiny.config(tmp_path, reward_functions={spec: 2.0}))
    texts = ["a"] * len(ppo_tiny.RECORDS)
    scores = scorer(ppo_tiny.RECORDS, texts, [True] * len(texts))
    assert scores.total.tolist() == [1.0] * len(texts)
    assert all(ppo_tiny.RECORDS) and texts


@pytest.mark.parametrize("text", ["def f(:", "x = nothing_of_this_name", "import sys; sys.exit(5)"])
def test_a_file_that_can_t_be_imported_is_the_users_mistake(tmp_path, text):
    (tmp_path / "rules.py").write_text(text)
    spec = f"{tmp_path / 'rules.py'}:f"
    with pytest.raises(ConfigError, match=r"rules.py:f': importing .* raised \w+ \(.*correct that"):
        build_rewards(ppo_tiny.config(tmp_path, reward_functions={spec: 1.0}))


def test_a_reward_that_fails_late_leaves_what_was_saved(tmp_path):
    (tmp_path / "rules.py").write_text(FUNCTIONS)
    settings = ppo_tiny.config(
        tmp_path / "out",
        reward_functions={f"{tmp_path / 'rules.py'}:late": 1.0},
        total_episodes=80,
        save_steps=1,
    )
    trainer = ppo_tiny.trainer(settings)
    trainer.reward = build_rewards(settings)
    with pytest.raises(RunError, match="raised ZeroDivisionError"):
        trainer.train()
    newest = checkpoint.newest_complete(tmp_path / "out")
    assert newest is not None and newest.name == "checkpoint-8"  # two rollouts of four steps


# ---------------------------------------------------------------- the disk


@pytest.mark.parametrize(
    "what, cut",
    [
        ("networks.safetensors", 99),
        ("optimizer.pt", 30_000),
        ("optimizer.pt", 9),
        ("state.json", 9),
    ],
)
def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(tmp_path, what, cut):
    """A write that stops ``cut`` bytes before the end; resumed, the weights are equal.

    A whole disk is filled in tests/recipes/test_bad_input.py.
    """
    options = {"total_episodes": 32, "save_steps": 1}
    whole = ppo_tiny.trainer(ppo_tiny.config(tmp_path / "whole", **options))
    whole.train()
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path / "cut", **options))
    save, before = trainer._save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full() -> None:
        if trainer.progress.rollout == 2:
            size = (tmp_path / "cut/checkpoint-4" / what).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - cut, before[1]))
        save()

    trainer._save = full
    try:
        with pytest.raises(RunError, match=r"the disk is full .*; checkpoint-4 is intact; free"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-4"]
    resumed = ppo_tiny.trainer(ppo_tiny.config(tmp_path / "cut", resume=True, **options))
    resumed.train()
    for name, parameter in weights(whole).items():
        assert torch.equal(weights(resumed)[name], parameter), name
