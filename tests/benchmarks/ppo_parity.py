"""The losses of PPO here against those of TRL 1.12.0 on the same rollouts.

    python tests/benchmarks/ppo_parity.py [--json] [--env DIR] [--write]

TRL's trainer runs as it is, in an environment of its own (see ppo_vs_trl.py). Generation and
rewards are replaced by the fixed rollouts of tests/ppo_cases.py; everything from log-probabilities
to gradients is TRL's. Printed is the largest difference of every quantity in every case. Exit code
1: a quantity that has to agree differs by more than 1e-4.

``--write`` keeps TRL's numbers in tests/golden/trl_1_12_ppo.json, which the tests read.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppo_cases
import torch
from learning.trl_run import PLAIN
from ppo_cases import CASES, GOLDEN, PAD, PER_STEP, PER_TOKEN, Case
from ppo_vs_trl import ROOT, peer_python

TOLERANCE = 1e-4


# ---------------------------------------------------------------- TRL


def theirs(case: Case, folder: Path) -> dict[str, Any]:
    """The numbers of `PER_TOKEN` and `PER_STEP` out of TRL's trainer.

    1. Generation gives the fixed completions, with the logits of the policy of the rollout.
    2. Values of the rollout come from the value model of the rollout, scores are fixed.
    3. Rows are taken in our order. 4. Numbers are read where TRL has them: in its own frame when
    it whitens advantages and when it logs, its losses at the backward pass, its gradients at the
    optimizer step.
    """
    import numpy as np
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    given, models = ppo_cases.inputs(case), ppo_cases.networks()
    reward_model = ppo_cases.network("value", "reward", 0.5)
    width, rows = max(map(len, given.prompts)), case.rows
    padded = [[PAD] * (width - len(p)) + p for p in given.prompts]
    completions = [c + [PAD] * (case.width - len(c)) for c in given.completions]
    order: list[int] = []  # which of our rows each of TRL's is
    numbers: dict[str, Any] = {"steps": 0}
    kept = {name: getattr(ppo_trainer, name) for name in ("get_reward", "masked_whiten")}

    # 1. generation
    def batch_generation(model, queries, size, pad, config):
        order[:] = [padded.index(q) for q in queries.tolist()]
        whole = torch.cat((queries, torch.tensor([completions[i] for i in order])), 1)
        logits = ppo_trainer.forward(models.old_policy, whole, pad).logits[:, width - 1 : -1]
        return whole, logits / config.temperature

    # 2. values and scores
    def get_reward(model, *rest):
        if model is reward_model:
            return None, torch.tensor([given.scores[i] for i in order]), None
        return kept["get_reward"](models.old_value, *rest)

    # 4. what TRL has when it whitens advantages
    def masked_whiten(values, mask, shift_mean=True):
        white = kept["masked_whiten"](values, mask, shift_mean)
        if shift_mean:
            frame = sys._getframe(1).f_locals
            back = torch.tensor(order).argsort()
            found = {n: frame[n] for n in PER_TOKEN}
            found |= {"advantages": white, "unwhitened": frame["advantages"]}
            numbers.update({n: x[back].tolist() for n, x in found.items()})
        return white

    dataset = Dataset.from_dict({"input_ids": given.prompts})
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder),
            learning_rate=ppo_cases.LEARNING_RATE,
            adam_epsilon=ppo_cases.ADAM_EPSILON,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            per_device_train_batch_size=case.peer_micro,
            gradient_accumulation_steps=rows // case.peer_micro,
            total_episodes=rows,
            num_mini_batches=case.num_mini_batches,
            num_ppo_epochs=case.num_ppo_epochs,
            response_length=case.width,
            temperature=case.temperature,
            gamma=case.gamma,
            lam=case.lam,
            cliprange=case.cliprange,
            cliprange_value=case.cliprange_value,
            vf_coef=case.vf_coef,
            kl_coef=case.kl_coef,
            whiten_rewards=case.whiten_rewards,
            missing_eos_penalty=case.missing_eos_penalty,
            max_grad_norm=case.max_grad_norm,
            local_rollout_forward_batch_size=rows,
            **PLAIN,
        ),
        processing_class=ppo_cases.tokenizer(),
        model=models.policy,
        ref_model=models.reference,
        reward_model=reward_model,
        value_model=models.value,
        train_dataset=dataset,
        eval_dataset=dataset,
    )
    watch(trainer, numbers)
    if not case.last_of_data:
        trainer.dataloader = list(trainer.dataloader)  # read to its end, it is no more the last
    replaced = {f.__name__: f for f in (batch_generation, get_reward, masked_whiten)}
    # 3. our order
    rows_in_order = mock.patch("numpy.random.permutation", lambda n: np.argsort(order))
    with mock.patch.multiple(ppo_trainer, **replaced), rows_in_order:
        trainer.train()
    if case.as_shipped:  # too many tokens to keep
        return {name: numbers[name] for name in (*PER_STEP, "logged", "steps")}
    return numbers


def watch(trainer: Any, numbers: dict[str, Any]) -> None:
    """Read losses, gradients and statistics as TRL comes by them."""
    backward, step, losses = trainer.accelerator.backward, trainer.optimizer.step, []
    numbers |= {"total_loss": [], "grad_norm_policy": [], "grad_norm_value": []}

    def on_backward(loss):
        losses.append(loss.item())
        backward(loss)

    def on_step():
        if trainer.accelerator.sync_gradients:
            numbers["steps"] += 1
            numbers["total_loss"].append(statistics.mean(losses))
            losses.clear()
            for name, model in (
                ("policy", trainer.model.policy),
                ("value", trainer.model.value_model),
            ):
                numbers[f"grad_norm_{name}"].append(ppo_cases.norm(model.parameters()))
        step()

    def log(metrics, *rest):
        frame = sys._getframe(1).f_locals
        for name, its in (
            ("policy_loss", "pg_loss_stats"),
            ("value_loss", "vf_loss_stats"),
            ("clipfrac", "pg_clipfrac_stats"),
            ("clipfrac_value", "vf_clipfrac_stats"),
            ("ratio", "ratio_stats"),
        ):
            stats = frame[its]  # (epochs, mini-batches, micro-batches)
            numbers[name] = stats.mean(2).flatten().tolist()
        numbers["logged"] = {
            name: metrics[name]
            for name in ("loss/policy_avg", "loss/value_avg", "objective/kl", "objective/scores")
        }

    trainer.accelerator.backward, trainer.optimizer.step, trainer.log = on_backward, on_step, log


def rounded(value: Any) -> Any:
    """Numbers with eight digits, in whatever holds them."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


# ---------------------------------------------------------------- both


def run_peer(env: Path) -> dict[str, Any]:
    """TRL's numbers of all cases, with what made them."""
    command = [str(peer_python(env)), __file__, "--worker"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"TRL failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def worker() -> None:
    """All cases under TRL."""
    made = {
        "how": "python tests/benchmarks/ppo_parity.py --write",
        "date": datetime.date.today().isoformat(),
        "python": ".".join(map(str, sys.version_info[:3])),
        **{name: version(name) for name in ("trl", "torch", "transformers", "accelerate")},
    }
    cases = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = {"case": asdict(case), "numbers": theirs(case, Path(folder))}
    print(json.dumps(rounded({"made": made, "cases": cases})))


def compare(peer: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a case and quantity."""
    rows = []
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            mine = ppo_cases.ours(case, Path(folder))
        theirs = peer["cases"][name]["numbers"]
        for quantity, far in ppo_cases.differences(case, mine, theirs).items():
            row = {"case": name, "quantity": quantity, "difference": far}
            row["has_to_agree"] = quantity in case.agree
            row["ok"] = far <= TOLERANCE or not row["has_to_agree"]
            if quantity in ("policy_loss", "value_loss", "total_loss"):
                row |= {"ours": mine[quantity], "trl": theirs[quantity]}
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Largest differences; in brackets where they are intended."""
    quantities = (*PER_TOKEN, *PER_STEP)
    lines = ["case".ljust(24) + " ".join(f"{q[:10]:>10}" for q in quantities)]
    for name in CASES:
        cells = {r["quantity"]: r for r in rows if r["case"] == name}

        def cell(quantity: str, cells: dict[str, Any] = cells) -> str:
            if quantity not in cells:
                return "-"
            text = f"{cells[quantity]['difference']:.0e}"
            if not cells[quantity]["has_to_agree"]:
                return f"({text})"
            return text if cells[quantity]["ok"] else f"{text}!"

        lines.append(name.ljust(24) + " ".join(f"{cell(q):>10}" for q in quantities))
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]], made: dict[str, Any]) -> dict[str, Any]:
    """The line of ``--json``: total losses of ours over those of TRL where they have to agree."""
    agreed = [r for r in rows if r["has_to_agree"]]
    losses = [r for r in agreed if r["quantity"] == "total_loss"]
    pairs = [p for r in losses for p in zip(r["ours"], r["trl"], strict=False)]
    ratios = [a / b for a, b in pairs]
    return {
        "name": "ppo_parity",
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ours": {"total_loss_median": statistics.median(a for a, _ in pairs)},
        "peer": {"total_loss_median": statistics.median(b for _, b in pairs)},
        "largest_difference": max(r["difference"] for r in agreed),
        "compared": len(agreed),
        "failed": [f"{r['case']}: {r['quantity']}" for r in agreed if not r["ok"]],
        "setting": f"{len(CASES)} fixed rollouts, trl {made['trl']}, torch {made['torch']}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="results as the last line of stdout")
    parser.add_argument("--env", type=Path, default=ROOT / "build/trl-1.12.0")
    parser.add_argument("--write", action="store_true", help="keep TRL's numbers for the tests")
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    peer = run_peer(options.env)
    if options.write:
        cases = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in peer["cases"].items())
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(f'{{"made": {json.dumps(peer["made"])},\n"cases": {{\n{cases}\n}}}}\n')
    rows = compare(peer)
    found = summary(rows, peer["made"])
    print(table(rows))
    print(
        f"largest difference of {found['compared']} that agree: {found['largest_difference']:.1e}"
    )
    if options.json:
        print(json.dumps(found))
    if found["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
