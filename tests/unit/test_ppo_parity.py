"""The numbers of PPO against those that TRL 1.12.0 gave on the same rollouts.

`golden/trl_1_12_ppo.json` was written by ``python tests/benchmarks/ppo_parity.py --write``, which
runs TRL's own trainer on the rollouts of `ppo_cases`. What differs by intention has a test each in
test_ppo_differences.py.
"""

import json
from dataclasses import asdict
from pathlib import Path

import ppo_cases
import pytest
from ppo_cases import CASES, PER_STEP, PER_TOKEN

TOLERANCE = 1e-4
FULL = [name for name, case in CASES.items() if case.agree == (*PER_TOKEN, *PER_STEP)]


def test_the_kept_numbers_are_those_of_these_rollouts():
    golden = json.loads(ppo_cases.GOLDEN.read_text())
    assert golden["made"]["trl"] == "1.12.0"
    assert {"how", "date", "python", "torch", "transformers"} <= golden["made"].keys()
    cases = {name: json.loads(json.dumps(asdict(case))) for name, case in CASES.items()}
    found = {name: kept["case"] for name, kept in golden["cases"].items()}
    assert found == cases, "make it again: python tests/benchmarks/ppo_parity.py --write"


@pytest.mark.parametrize("name", CASES)
def test_numbers_equal_those_of_trl(name: str, tmp_path: Path):
    case = CASES[name]
    theirs = ppo_cases.golden(name)
    found = ppo_cases.differences(case, ppo_cases.ours(case, tmp_path), theirs)
    wanted = set(case.agree) - (set(PER_TOKEN) if case.as_shipped else set())
    assert wanted <= found.keys()
    assert {q: far for q, far in found.items() if q in wanted and not far <= TOLERANCE} == {}


@pytest.mark.parametrize("name", ["plain", "narrow clips", "mini-batches", "large"])
def test_the_logged_losses_are_those_that_trl_logs(name: str, tmp_path: Path):
    logged, theirs = ppo_cases.ours(CASES[name], tmp_path)["logged"], ppo_cases.golden(name)
    peer = theirs["logged"]
    assert logged["loss/policy"] == pytest.approx(peer["loss/policy_avg"], abs=TOLERANCE)
    assert logged["loss/value"] == pytest.approx(peer["loss/value_avg"], abs=TOLERANCE)


def test_the_rollouts_reach_every_branch():
    """Ratios away from 1, both clips at work, more than one step, all kinds of completions."""
    assert len(FULL) >= 9 and {case.completions for case in CASES.values()} >= {"full", "cut"}
    plain, narrow = ppo_cases.golden("plain"), ppo_cases.golden("narrow clips")
    assert 0.1 < plain["clipfrac"][0] < 0.9 and 0.1 < plain["clipfrac_value"][0] < 0.9
    assert abs(narrow["total_loss"][0] - narrow["total_loss"][1]) > 0.05
    assert len(ppo_cases.golden("mini-batches")["total_loss"]) == 4
    assert max(abs(k) for row in plain["kl"] for k in row) > 0.5
