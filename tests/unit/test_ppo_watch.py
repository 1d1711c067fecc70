"""What a run of PPO leaves to look at: trackers, and a second opinion on held-out completions."""

import importlib.util
import json
import math
import os
import sys
from types import SimpleNamespace
from typing import get_args

import ppo_tiny
import pytest

from align import checkpoint, preflight
from align.config import PPOStage, StageConfig
from align.errors import ConfigError
from align.ppo.build import build_gold
from align.ppo.rewards import Rewards, checked
from align.ppo.watch import Watch
from align.training import trackers_in

TRACKERS = ("wandb", "trackio", "tensorboard")


def there(tracker: str) -> bool:
    spec = importlib.util.find_spec(tracker)
    return spec is not None and spec.origin is not None


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- trackers


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_gets_the_numbers_of_metrics_jsonl(tmp_path, monkeypatch, capsys, tracker):
    if not there(tracker):
        pytest.skip(f"{tracker} is not installed; preflight refuses it, see below")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    settings = ppo_tiny.config(tmp_path / "out", report_to=[tracker], save_steps=1)
    trainer = ppo_tiny.trainer(settings)
    trainer.train()
    trainer.finish(lambda folder: checkpoint.save.write_json(folder / "lineage.json", {}))
    assert trainer.progress.rollout == 2
    assert capsys.readouterr().out == "", "stdout is for results"
    if tracker == "tensorboard":
        assert_events_match(tmp_path / "out")


def assert_events_match(folder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.glob("align-ppo/events.*")
    found = EventAccumulator(str(events))
    found.Reload()
    for name in ("score", "kl", "loss/policy", "eval/score", "seconds/generate"):
        want = [(m["step"], m[name]) for m in metrics(folder) if name in m]
        got = [(s.step, s.value) for s in found.Scalars(name)]
        assert len(got) >= 2 and [step for step, _ in got] == [step for step, _ in want], name
        assert [v for _, v in got] == pytest.approx([v for _, v in want], rel=1e-5), name


@pytest.mark.skipif(not there("tensorboard"), reason="tensorboard is not installed")
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_tracked_run_is_resumed_and_overwritten_as_any_other(tmp_path, flag):
    settings = ppo_tiny.config(tmp_path, report_to=["tensorboard"], save_steps=1)
    ppo_tiny.trainer(settings).train()
    again = ppo_tiny.config(
        tmp_path, report_to=["tensorboard"], save_steps=1, total_episodes=16, **{flag: True}
    )
    trainer = ppo_tiny.trainer(again)
    trainer.train()
    assert trainer.progress.rollout == 2


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_wandb_writes_below_the_runs_folder_unless_it_is_told_where(tmp_path, monkeypatch, chosen):
    """Its own default is ./wandb in whatever folder one stands in."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    if chosen:
        monkeypatch.setenv("WANDB_DIR", chosen)
    seen = []
    told = SimpleNamespace(
        is_main_process=False,
        log_with=["wandb"],
        init_trackers=lambda name, config, init_kwargs: seen.append(init_kwargs),
    )
    Watch(told, tmp_path, 1, {}).start(0, {})
    assert seen == [{"wandb": {"dir": chosen or str(tmp_path)}}]
    with trackers_in(str(tmp_path)):  # what SFT and the reward model go by
        assert os.environ["WANDB_DIR"] == (chosen or str(tmp_path))
    assert os.environ.get("WANDB_DIR") == chosen


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch, tracker):
    monkeypatch.setitem(sys.modules, tracker, None)  # as if it were not there
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == tracker else real(name, *a)
    )
    with pytest.raises(ConfigError, match=f"{tracker}, which is not installed; pip install") as no:
        preflight.check_values(ppo_tiny.config(tmp_path, report_to=[tracker]))
    assert no.value.exit_code == 2


def test_a_folder_named_as_a_tracker_is_no_tracker(tmp_path, monkeypatch):
    """wandb leaves a folder ``wandb`` where it ran, which Python takes for a package."""
    (tmp_path / "wandb_left").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("wandb_left") is not None
    assert not preflight._installed("wandb_left") and preflight._installed("json")


def test_every_tracker_that_a_recipe_may_name_is_tested_here():
    (names,) = get_args(StageConfig.__annotations__["report_to"])
    assert set(get_args(names)) == set(TRACKERS)


# ---------------------------------------------------------------- the second opinion


def long_ones(records, completions, ended):
    return checked("length", [float(len(text)) for text in completions], completions)


def test_the_gold_score_stands_beside_score_and_kl_and_changes_nothing_else(tmp_path):
    found = {}
    for name, gold in (("with", Rewards({"length": (2.0, long_ones)})), ("without", None)):
        settings = ppo_tiny.config(tmp_path / name, eval_steps=1)
        trainer = ppo_tiny.trainer(settings, gold=gold)
        trainer.train()
        found[name] = metrics(tmp_path / name)
    judged = [m for m in found["with"] if "eval/score" in m]
    assert len(judged) == 3 and all("eval/kl" in m for m in judged)
    rows = [json.loads(x) for x in (tmp_path / "with/samples.jsonl").read_text().splitlines()]
    first = [r for r in rows if r["rollout"] == 0]
    assert [r["gold_score"] for r in first] == [2.0 * len(r["completion"]) for r in first]
    mean = sum(r["gold_score"] for r in first) / len(first)
    assert judged[0]["eval/gold_score"] == pytest.approx(mean)
    assert judged[0]["eval/gold_score_std"] > 0

    def rest(lines):
        drop = ("gold", "second")
        return [{k: v for k, v in m.items() if not any(d in k for d in drop)} for m in lines]

    assert rest(found["with"]) == rest(found["without"])
    assert not any("gold" in key for line in found["without"] for key in line)


def test_gold_comes_from_functions_of_the_config(tmp_path):
    assert build_gold(ppo_tiny.config(tmp_path)) is None
    (tmp_path / "rules.py").write_text("def one(p, c, r):\n    return [1.0] * len(c)\n")
    spec = f"{tmp_path / 'rules.py'}:one"
    gold = build_gold(ppo_tiny.config(tmp_path, gold_functions={spec: 3.0}))
    scores = gold([{"prompt": "a"}, {"prompt": "b"}], ["x", "y"], [True, False])
    assert scores.total.tolist() == [3.0, 3.0]
    fields = PPOStage.__dataclass_fields__
    assert {"gold_reward_model", "gold_functions"} <= set(fields)


def test_the_report_draws_score_and_gold_score_over_the_root_of_kl():
    from align.report import evidence
    from align.report.evidence import gains, gold_against_proxy
    from align.report.load import Stage

    curve = [
        {"eval/kl": kl, "eval/score": s, "eval/score_std": 2.0,
         "eval/gold_score": g, "eval/gold_score_std": 0.5}
        for kl, s, g in ((0.0, 1.0, 4.0), (4.0, 3.0, 4.5), (9.0, 5.0, 4.0))
    ]  # fmt: skip
    curve.insert(1, {"step": 1, "score": 2.0})
    assert gains(curve, "eval/score") == [(0.0, 0.0), (2.0, 1.0), (3.0, 2.0)]
    assert gains(curve, "eval/gold_score") == [(0.0, 0.0), (2.0, 1.0), (3.0, 0.0)]
    html = gold_against_proxy(Stage(name="ppo", curve=curve))
    assert html.count("<polyline") == 2 and "gold score</text>" in html and "√KL" in html
    alone = [{k: v for k, v in line.items() if "gold" not in k} for line in curve]
    assert gold_against_proxy(Stage(name="ppo", curve=alone)) == ""
    warned = Stage(name="ppo", curve=curve, lineage={"warnings": ["all <cut>"]})
    assert "<li>all &lt;cut&gt;</li>" in evidence._warnings(warned)
    flat = [{**line, "eval/gold_score_std": 0.0} for line in curve if "eval/kl" in line]
    assert gains(flat, "eval/gold_score") == [] and not math.isnan(gains(flat, "eval/score")[1][1])
