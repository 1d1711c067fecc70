"""The trainer as a whole, on networks of 25k parameters."""

import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import ppo_tiny
import pytest
import torch
from accelerate.state import AcceleratorState

from align import checkpoint
from align.checkpoint import quiet_peft
from align.errors import CheckpointError, ConfigError, Interrupted
from align.ppo.build import assemble
from align.ppo.generate import Completions
from align.ppo.metrics import kl_per_completion
from align.ppo.models import causal_lm


def weights(trainer) -> dict[str, torch.Tensor]:
    networks = trainer.accelerator.unwrap_model(trainer.networks)
    return {n: p.detach().clone() for n, p in networks.named_parameters() if p.requires_grad}


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lora", [False, True])
def test_first_pass_has_ratio_1_and_no_kl(tmp_path, lora):
    settings = ppo_tiny.config(tmp_path, num_ppo_epochs=1, total_episodes=8, use_peft=lora)
    ppo_tiny.trainer(settings).train()
    (line,) = [m for m in metrics(tmp_path) if "score" in m]
    assert line["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert line["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert line["clipfrac"] == 0
    assert line["kl"] == pytest.approx(0, abs=1e-6)
    assert line["approx_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(tmp_path, lora):
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers a process's precision
    settings = ppo_tiny.config(
        tmp_path, bf16=True, num_ppo_epochs=1, total_episodes=32, use_peft=lora, learning_rate=1e-2
    )
    trainer = ppo_tiny.trainer(settings)
    seen = []
    lm = causal_lm(trainer.accelerator.unwrap_model(trainer.networks).policy)
    lm.model.layers[0].mlp.gate_proj.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    before = weights(trainer)
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    lines = [m for m in metrics(tmp_path) if "loss/policy" in m]
    assert len(lines) == 4 and set(seen) == {torch.bfloat16}
    for line in lines:  # one optimizer step a rollout: the first mini-batch
        assert math.isfinite(line["loss/policy"]) and math.isfinite(line["loss/value"])
        assert line["ratio_mean"] == pytest.approx(1, abs=1e-2)
        assert line["ratio_max"] == pytest.approx(1, abs=1e-2)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4)  # the reference computes in it too
    assert {p.dtype for p in weights(trainer).values()} == {torch.float32}
    moments = [v for of in trainer.optimizer.state_dict()["state"].values() for v in of.values()]
    assert {m.dtype for m in moments} == {torch.float32}
    assert any(not torch.equal(p, before[n]) for n, p in weights(trainer).items())


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_score_rises_within_the_kl_budget(tmp_path, seed, lora):
    settings = ppo_tiny.config(
        tmp_path,
        seed=seed,
        use_peft=lora,
        learning_rate=3e-2 if lora else 5e-3,
        lr_scheduler_type="constant",
        kl_coef=0.02,
        kl_budget=25.0,
        total_episodes=64 * 12,
        per_device_train_batch_size=64,
        num_ppo_epochs=3,
        eval_steps=0,
    )
    trainer = ppo_tiny.trainer(settings, seed=seed)
    trainer.train()
    lines = [m for m in metrics(tmp_path) if "score" in m]
    assert len(lines) == 12 and not trainer.progress.stopped
    assert lines[-1]["score"] > lines[0]["score"] + 0.2


@pytest.mark.parametrize("lora", [False, True])
def test_gradients_do_not_depend_on_how_a_mini_batch_is_cut(tmp_path, lora):
    steps = []
    for rows, pieces in ((16, 1), (4, 4), (1, 16)):
        settings = ppo_tiny.config(
            tmp_path / str(rows),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=pieces,
            num_ppo_epochs=1,
            total_episodes=16,
            use_peft=lora,
        )
        trainer = ppo_tiny.trainer(settings)
        seen = {}
        trainer.accelerator.clip_grad_norm_ = lambda parameters, limit, t=trainer, s=seen: (
            s.update(
                {n: p.grad.clone() for n, p in t.networks.named_parameters() if p.requires_grad}
            )
            or torch.tensor(1.0)
        )
        trainer.train()
        steps.append(seen)
    for other in steps[1:]:
        for name, gradient in steps[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-5)
    assert any(g.abs().max() > 1e-3 for g in steps[0].values())


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_gives_the_same_weights(tmp_path, lora):
    after = []
    for recompute in (False, True):
        settings = ppo_tiny.config(
            tmp_path / str(recompute),
            gradient_checkpointing=recompute,
            use_peft=lora,
            learning_rate=1e-2,
        )
        trainer = ppo_tiny.trainer(settings)
        before = weights(trainer)
        trainer.train()
        after.append(weights(trainer))
    for name, parameter in after[0].items():
        torch.testing.assert_close(after[1][name], parameter, atol=1e-5, rtol=1e-4)
    moved = [n for n, p in after[0].items() if not torch.equal(p, before[n])]
    assert any(".value." in n or "value_backbone" in n for n in moved)
    assert any(".default." in n or n.startswith("policy.") for n in moved)


@pytest.mark.parametrize("lora", [False, True])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, lora):
    options = {
        "use_peft": lora,
        "total_episodes": 32,
        "normalize_scores": True,
        "kl_target": 1.0,
        "kl_budget": 50.0,
        "ema_decay": 0.5,
        "eval_steps": 2,
    }
    whole = ppo_tiny.trainer(ppo_tiny.config(tmp_path / "a", **options))
    whole.train()

    settings = ppo_tiny.config(tmp_path / "b", save_steps=1, **options)
    cut = ppo_tiny.trainer(settings)
    complete = cut._complete

    def killed(prompts, stream) -> Completions:
        if stream == 2:
            raise SystemExit("killed")
        return complete(prompts, stream)

    cut._complete = killed
    with pytest.raises(SystemExit):
        cut.train()
    cut.watch.log({"rollout": 3, "score": 0.0}, 3)  # a line of the life that was lost

    newest = checkpoint.newest_complete(tmp_path / "b")
    assert newest is not None and newest.name == "checkpoint-8"
    resumed = ppo_tiny.trainer(replace(settings, resume=True))
    resumed.train()
    for name, parameter in weights(whole).items():
        assert torch.equal(weights(resumed)[name], parameter), name
    timeless = [
        [{k: v for k, v in m.items() if "second" not in k} for m in metrics(tmp_path / x)]
        for x in "ab"
    ]
    assert timeless[0] == timeless[1]


def test_resume_refuses_another_run(tmp_path):
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path, total_episodes=8))
    trainer.train()
    other = ppo_tiny.trainer(ppo_tiny.config(tmp_path, total_episodes=8, seed=7, resume=True))
    with pytest.raises(CheckpointError, match="was written with seed = 0, this run has 7"):
        other.train()


def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path):
    trainer = ppo_tiny.trainer(ppo_tiny.config(tmp_path, total_episodes=80))
    complete = trainer._complete

    def pressed(prompts, stream) -> Completions:
        if stream == 1:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return complete(prompts, stream)

    trainer._complete = pressed
    with pytest.raises(Interrupted, match=r"saved step 4; resume with: .*--resume"):
        trainer.train()
    assert checkpoint.newest_complete(tmp_path).name == "checkpoint-4"


DEMONSTRATIONS = [{"prompt": p, "reasoning": "", "answer": "yes"} for p in ppo_tiny.PROMPTS]


def test_ptx_gradient_is_that_of_the_mean_loss_on_demonstrations(tmp_path):
    """With a clip range and advantages out of play only the pretraining term moves the policy."""
    found = []
    for rows in (6, 2):
        settings = ppo_tiny.config(
            tmp_path / str(rows),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=6 // rows,
            num_ppo_epochs=1,
            total_episodes=6,
            ptx_coef=3.0,
            ptx_datasets={"demonstrations": 1.0},
        )
        trainer = ppo_tiny.trainer(settings, ptx_records=DEMONSTRATIONS)
        learner, sums = trainer.learner, defaultdict(lambda: torch.zeros(()))
        learner._ptx(learner.ptx, 6, trainer.progress, sums)
        found.append({n: p.grad.clone() for n, p in trainer.networks.policy.named_parameters()})
    lm, tok = ppo_tiny.llama(), ppo_tiny.tokenizer()
    loss, tokens = 0.0, 0
    for p in ppo_tiny.PROMPTS:
        ids = torch.tensor([tok(p + "\nyes")["input_ids"] + [1]])
        logprobs = lm(ids).logits[0, -5:-1].log_softmax(-1)
        loss, tokens = loss - logprobs.gather(1, ids[0, -4:, None]).sum(), tokens + 4
    (3.0 * loss / tokens).backward()
    for name, parameter in lm.named_parameters():
        for gradients in found:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_ptx_lowers_the_loss_on_demonstrations(tmp_path):
    settings = ppo_tiny.config(
        tmp_path, total_episodes=80, ptx_coef=1.0, ptx_datasets={"x": 1.0}, learning_rate=3e-3
    )
    ppo_tiny.trainer(settings, ptx_records=DEMONSTRATIONS).train()
    losses = [m["loss/ptx"] for m in metrics(tmp_path) if "loss/ptx" in m]
    assert losses[-1] < losses[0] / 2


def test_the_average_of_the_weights_is_the_result(tmp_path):
    settings = ppo_tiny.config(tmp_path, ema_decay=0.999999)
    trainer = ppo_tiny.trainer(settings)
    before = weights(trainer)
    trainer.train()
    for name, parameter in weights(trainer).items():
        if name.startswith("policy."):
            torch.testing.assert_close(parameter, before[name], atol=1e-5, rtol=0)
        else:
            assert not torch.equal(parameter, before[name])


# ---------------------------------------------------------------- control


def test_kl_over_its_budget_stops_the_run(tmp_path):
    settings = ppo_tiny.config(
        tmp_path, total_episodes=800, learning_rate=3e-2, kl_budget=0.5, kl_coef=0.0
    )
    trainer = ppo_tiny.trainer(settings)
    trainer.train()
    assert "over kl_budget 0.5" in trainer.progress.stopped
    assert trainer.progress.rollout < 100
    over = trainer._score(trainer.prompts, trainer._complete(trainer.prompts, 0))
    assert kl_per_completion(over).mean() < 1.0


def test_a_run_that_is_resumed_and_then_exceeds_its_budget_has_the_policy_within_it(tmp_path):
    """That policy is none in training any more: it must be in the checkpoint."""
    options = {"total_episodes": 800, "learning_rate": 3e-2, "kl_budget": 0.5, "kl_coef": 0.0}
    whole = ppo_tiny.trainer(ppo_tiny.config(tmp_path / "a", **options))
    whole.train()
    settings = ppo_tiny.config(tmp_path / "b", save_steps=1, **options)
    cut = ppo_tiny.trainer(settings)
    save = cut._save

    def killed_before_the_last() -> None:
        if cut.progress.stopped:  # after the held-out evaluation
            raise SystemExit("killed")
        save()

    cut._save = killed_before_the_last
    with pytest.raises(SystemExit):
        cut.train()
    resumed = ppo_tiny.trainer(replace(settings, resume=True))
    resumed.train()
    assert resumed.progress.stopped == whole.progress.stopped != ""
    rollouts = [[m["rollout"] for m in metrics(tmp_path / x)] for x in "ab"]
    assert rollouts[0] == rollouts[1]
    for name, parameter in weights(whole).items():
        assert torch.equal(weights(resumed)[name], parameter), name


def test_early_stop_on_approximate_kl_saves_optimizer_steps(tmp_path):
    settings = ppo_tiny.config(
        tmp_path, total_episodes=8, learning_rate=3e-2, num_ppo_epochs=9, approx_kl_limit=0.01
    )
    trainer = ppo_tiny.trainer(settings)
    trainer.train()
    assert trainer.progress.step < 9


def test_critic_warm_up_leaves_the_policy_alone(tmp_path):
    trainer = ppo_tiny.trainer(
        ppo_tiny.config(tmp_path, total_episodes=16, critic_warmup_rollouts=2)
    )
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    for name, parameter in after.items():
        assert torch.equal(parameter, before[name]) == name.startswith("policy."), name


# ---------------------------------------------------------------- networks and files


@pytest.mark.parametrize("lora", [False, True])
def test_the_saved_policy_is_the_trained_one(tmp_path, lora):
    ppo_tiny.llama().save_pretrained(tmp_path / "sft")
    ppo_tiny.tokenizer().save_pretrained(tmp_path / "sft")
    settings = ppo_tiny.config(
        tmp_path / "run",
        model_name_or_path=str(tmp_path / "sft"),
        use_peft=lora,
        learning_rate=1e-2,
    )
    trainer = ppo_tiny.trainer(settings)
    if lora:
        name = trainer.networks.policy.peft_config["default"]
        name.base_model_name_or_path = str(tmp_path / "sft")
    trainer.train()
    trainer.finish(
        lambda folder: checkpoint.write_lineage(
            folder,
            stage="ppo",
            config=settings,
            parent=settings.model_name_or_path,
            data=[{"card": "tiny", "rows": 6}],
            tokenizer=trainer.tokenizer,
            started=0.0,
            tokens=1,
            extra=trainer.evidence(),
        )
    )
    ids = torch.tensor([[7, 8, 9, 10]])
    with trainer.networks.sampling() as lm:
        want = lm(ids).logits
    assert not (tmp_path / "run/value").exists()
    assert checkpoint.read_lineage(tmp_path / "run")["held_out"]["eval/n"] == 3
    with quiet_peft():
        loaded = checkpoint.load_causal(str(tmp_path / "run")).model
    torch.testing.assert_close(loaded(ids).logits, want, atol=1e-5, rtol=1e-5)


def test_dropout_is_off_in_all_networks():
    networks = assemble(ppo_tiny.llama(attention_dropout=0.3), None, seed=0)
    assert all(
        value == 0
        for module in networks.modules()
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, float)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"reward_functions": None}, "PPO has no reward; give reward_model or reward_functions"),
        ({"use_peft": True, "lora_dropout": 0.1}, "lora_dropout is 0.1"),
        ({"max_completion_length": 64}, "leaves no room for a prompt"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"ptx_coef": 1.0}, "PPO-ptx needs both"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5; it must be between 0 and 1"),
        ({"dual_clip": 0.5}, "dual_clip is 0.5; it must be above 1"),
    ],
)
def test_config_errors_say_what_is_wrong(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        ppo_tiny.config(tmp_path, **change)
