"""The PPO run of a finished checkpoint again, in TRL 1.12.0; runs under TRL's own interpreter.

The policy is kept after every save_steps rollouts, in `kept_beside` the run.

What is the same: SFT and reward model, training prompts, episodes, batch, epochs, clip ranges,
learning rate and its schedule, KL coefficient, penalty of a missing EOS, lengths, temperature.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FIELDS = [
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "total_episodes",
    "num_ppo_epochs",
    "num_mini_batches",
    "kl_coef",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "gamma",
    "lam",
    "temperature",
    "missing_eos_penalty",
    "max_grad_norm",
    "seed",
]


PLAIN: dict[str, Any] = {
    "stop_token": "eos",
    "num_sample_generations": 0,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "disable_tqdm": True,
}
"""What every run of TRL's trainer here has: float32 on a CPU, and nothing beside the training."""


def kept_beside(run: Path) -> Path:
    """Where the policies along a run lie, a folder each, named by the number of the rollout."""
    return run.parent / f"{run.name}-kept"


def train(python: Path, ours: Path, seed: int) -> Path:
    """Train as ``ours`` was trained; returns the folder of the policy."""
    out = ours.with_name(f"trl-{seed}")
    if (out / "model.safetensors").is_file():
        return out
    from align.checkpoint.save import located

    config = located(json.loads((ours / "lineage.json").read_text("utf-8"))["config"], ours)
    job = out.with_suffix(".json")
    job.write_text(json.dumps({"config": config, "prompts": _prompts(config, ours)}), "utf-8")
    command = [str(python), "-m", "learning.trl_run", str(job), str(out)]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=Path(__file__).parents[1])
    return out


def _prompts(config: dict[str, Any], ours: Path) -> list[list[int]]:
    """The token ids of the prompts that our run drew from."""
    from align.checkpoint import load_tokenizer
    from align.data import load_mixture
    from align.ppo.rollout import tokenize

    mixture = load_mixture(
        config["datasets"],
        "prompt-only",
        seed=config["seed"],
        eval_fraction=config["eval_fraction"],
    )
    longest = config["max_length"] - config["max_completion_length"]
    return [p.ids for p in tokenize(mixture.train, load_tokenizer(str(ours)), longest)]


def main(job: Path, out: Path) -> None:
    """One run of trl.experimental.ppo."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
        set_seed,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    given = json.loads(job.read_text("utf-8"))
    config = given["config"]
    set_seed(config["seed"])  # of NumPy too, by which the trainer shuffles and which it never seeds
    sft, reward = config["model_name_or_path"], config["reward_model"]
    ids = Dataset.from_dict({"input_ids": given["prompts"]})
    tokenizer = AutoTokenizer.from_pretrained(sft, padding_side="left")

    def scorer() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1)

    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(out),
            **{name: config[name] for name in FIELDS},
            **PLAIN,
            response_length=config["max_completion_length"],
            kl_estimator="k1",
            local_rollout_forward_batch_size=64,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(sft),
        ref_model=AutoModelForCausalLM.from_pretrained(sft),
        reward_model=scorer(),
        value_model=scorer(),
        train_dataset=ids,
        eval_dataset=ids.select(range(64)),
    )

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            rollout = state.global_step
            if rollout % config["save_steps"] == 0 or rollout == state.max_steps:
                policy = trainer.accelerator.unwrap_model(trainer.model).policy
                folder = kept_beside(out) / f"{rollout:04d}"
                policy.save_pretrained(folder)
                tokenizer.save_pretrained(folder)

    trainer.add_callback(Keep)
    trainer.train()
    trainer.accelerator.unwrap_model(trainer.model).policy.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
