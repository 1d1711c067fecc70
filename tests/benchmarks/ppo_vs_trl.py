"""PPO here against TRL 1.12.0, the last release of TRL that has one.

    python tests/benchmarks/ppo_vs_trl.py [--json] [--pairs 5] [--setting full] [--quick]

Both train the same random-weight Llama on the same prompts, with a reward model, a value model and
a reference of the same size, the same number of rollouts, epochs and optimizer steps. Both are made
to write completions of the same lengths: `ends` draws for each completion of each rollout where its
EOS comes, with a real spread and some that the limit cuts. No ratio is printed where the mean
lengths or the optimizer steps differ all the same. The two alternate in one run, each in a process
of its own; a ratio is one of ours to the one of TRL right beside it. Peak memory is that of the
whole process without what its imports took. TRL runs in an environment of its own, which this
program makes in --env: it shares the installed packages of this one except trl.

Settings: `full` (all weights, float32), `lora` (rank 16 on all linear layers, float32; here policy,
value model and reward model are adapters of one backbone, TRL trains all weights of its value model
and holds a whole reward model), `bfloat16` (here also in bfloat16 with micro-batches of 16; TRL as
in `lora`), `recommended` (here what recipes/README.md recommends for speed on a CPU: as `bfloat16`,
and adapters in the upper half of the layers only; TRL as in `lora`), `memory` (as `lora`, on 65M
parameters).
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

from learning.trl_run import PLAIN

ROOT = Path(__file__).resolve().parents[2]
WORDS, EOS, PAD = 512, 0, 511
LIMIT, MEAN_LENGTH = 64, 24  # tokens of a completion: the most, and the mean of those not cut
KEPT = (
    "episodes_per_second",
    "cpu_seconds_per_episode",
    "peak_mib",
    "completion_length",
    "optimizer_steps",
)
SMALL, LARGE = (128, 4), (640, 12)  # width, layers: 0.9M and 65M parameters
BFLOAT16 = {"per_device_train_batch_size": 16, "dtype": "bfloat16"}
RECOMMENDED = {**BFLOAT16, "lora_layers": SMALL[1] // 2}
SETTINGS = {
    "full": {"size": SMALL, "lora": False},
    "lora": {"size": SMALL, "lora": True},
    "bfloat16": {"size": SMALL, "lora": True, "ours": BFLOAT16},
    "recommended": {"size": SMALL, "lora": True, "ours": RECOMMENDED},
    "memory": {
        "size": LARGE,
        "lora": True,
        "batch": 16,
        "rollouts": 2,
        "epochs": 1,
    },
}


# ---------------------------------------------------------------- the same for both


def tokenizer():
    """EOS, words w1 … w510, PAD; one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": EOS, "<pad>": PAD, **{f"w{i}": i for i in range(1, PAD)}}
    core = Tokenizer(models.WordLevel(words, "w1"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    made.padding_side = "left"
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{{ ' ' if m['role'] == 'user' else ' <eos>' }}"
        "{% endfor %}"
    )
    return made


def prompts(n: int) -> list[str]:
    """Prompts of 32 to 64 words."""
    draw = random.Random(0)
    return [
        " ".join(f"w{draw.randrange(1, PAD)}" for _ in range(draw.randint(32, 64)))
        for _ in range(n)
    ]


def ends(rollout: int, n: int) -> list[int]:
    """Which token, counted from 0, is the EOS of each of a rollout's n completions.

    It comes with a probability of 1 / MEAN_LENGTH at every token; at LIMIT or later it never does.
    """
    draw = random.Random(rollout)
    return [int(draw.expovariate(1 / MEAN_LENGTH)) for _ in range(n)]


def causal_lm(width: int, layers: int):
    """A random Llama; its next token is any of the words with about the same probability."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(width, layers)).eval()


def reward_model(width: int, layers: int):
    """A random reward model of the same size."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(1)
    return LlamaForSequenceClassification(llama_config(width, layers)).eval()


def llama_config(width: int, layers: int):
    """A Llama of about 0.9M parameters at width 128 with 4 layers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        num_labels=1,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )


# ---------------------------------------------------------------- one of each


def run_ours(job: dict) -> dict:
    """Episodes a second of align.ppo."""
    import peft  # noqa: F401 (imports are not counted)
    import torch

    from align.checkpoint import lora_config
    from align.config import PPOStage
    from align.ppo import trainer as ppo
    from align.ppo.adapters import RewardAdapter, SharedScorer, add_adapters
    from align.ppo.build import assemble
    from align.ppo.rewards import Rewards
    from align.scoring import RewardScorer

    imports = memory()
    micro = min(job["ours"].get("per_device_train_batch_size", job["micro"]), job["batch"])
    settings = {
        **job["ours"],
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": job["batch"] // micro,
        "per_device_rollout_batch_size": job["batch"],
    }
    config = PPOStage(
        model_name_or_path="random",
        datasets={"random": 1.0},
        output_dir=str(Path(job["folder"]) / "ours"),
        reward_functions={"random": 1.0},
        learning_rate=1e-5,
        total_episodes=job["batch"] * job["rollouts"],
        num_ppo_epochs=job["epochs"],
        max_completion_length=LIMIT,
        max_length=128,
        use_peft=job["lora"],
        lora_r=16,
        save_steps=10**6,
        **settings,
    )
    dtype = getattr(torch, config.dtype)
    lm = causal_lm(*job["size"]).to(dtype)
    if job["lora"]:
        lora, head = lora_config(config, "CAUSAL_LM", lm), torch.randn(1, job["size"][0])
        reward = RewardAdapter("random", lora, {}, head, 0.0, tokenizer(), PAD)
        score = SharedScorer(reward, micro)
        policy = add_adapters(lm, lora, seed=0, reward=reward)
        networks = assemble(policy, None, seed=0, reward=reward)
        score.attach(networks)
    else:
        networks = assemble(lm, reward_model(*job["size"]), seed=0)
        scorer = RewardScorer(reward_model(*job["size"]), tokenizer())

        def score(records, completions, ended):
            return scorer([r["prompt"] for r in records], completions, ended)

    drawn = ppo.draws

    def scheduled(seed, stream, rows, tokens):
        """0 draws EOS, the first of the words; the upper half draws none (nor PAD, the last)."""
        uniforms = 0.5 + 0.49 * drawn(seed, stream, rows, tokens)
        for row, end in enumerate(ends(stream, rows)):
            uniforms[row, end : end + 1] = 0
        return uniforms

    ppo.draws = scheduled
    trainer = ppo.PPOTrainer(
        config,
        networks,
        tokenizer(),
        Rewards({"random": (1.0, score)}),
        [{"prompt": p} for p in prompts(4 * job["batch"])],
        [],
        eos_token_ids=[EOS],
    )
    advance, moments = trainer.watch.advance, []

    def clock(*args):
        advance(*args)
        moments.append((time.perf_counter(), time.process_time()))

    trainer.watch.advance = clock
    trainer.train()
    lines = (trainer.output_dir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "completion_length" in row]
    return {
        **pace(moments, job),
        "completion_length": statistics.mean(r["completion_length"] for r in rows),
        "optimizer_steps": trainer.progress.step,
        "peak_mib": memory() - imports,
        "phases": {
            k: statistics.mean(r[k] for r in rows[1:]) for k in rows[0] if k.startswith("seconds/")
        },
    }


def run_trl(job: dict) -> dict:
    """Episodes a second of TRL 1.12.0."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    imports = memory()
    ids = [tokenizer()(p)["input_ids"] for p in prompts(4 * job["batch"])]
    lm, score = causal_lm(*job["size"]), reward_model(*job["size"])
    reference = None if job["lora"] else causal_lm(*job["size"])
    value = reward_model(*job["size"])
    moments: list[tuple[float, float]] = []
    lengths: list[float] = []
    generation = ppo_trainer.batch_generation

    def scheduled(model, queries, *rest):
        """Generation in which EOS comes where `ends` says and PAD nowhere; counts tokens."""
        width, due = queries.shape[1], torch.tensor(ends(len(lengths), len(queries)))

        def end(ids, scores):
            now = due == ids.shape[1] - width
            scores[:, PAD] = -1e4
            scores[:, EOS] = torch.where(now, 1e4, -1e4)
            return scores

        plain = model.generate
        model.generate = lambda **options: plain(logits_processor=[end], **options)
        try:
            done = generation(model, queries, *rest)
        finally:
            del model.generate
        stopped = (done[0][:, width:] == EOS).cumsum(1)  # (B, T)
        lengths.append(((stopped == 0).sum(1) + stopped[:, -1].clamp(max=1)).float().mean().item())
        return done

    ppo_trainer.batch_generation = scheduled

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            moments.append((time.perf_counter(), time.process_time()))

    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(Path(job["folder"]) / "trl"),
            learning_rate=1e-5,
            per_device_train_batch_size=job["micro"],
            gradient_accumulation_steps=job["batch"] // job["micro"],
            total_episodes=job["batch"] * job["rollouts"],
            num_ppo_epochs=job["epochs"],
            response_length=LIMIT,
            temperature=1.0,
            local_rollout_forward_batch_size=job["batch"],
            **PLAIN,
            max_grad_norm=1.0,
        ),
        processing_class=tokenizer(),
        model=lm,
        ref_model=reference,
        reward_model=score,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        eval_dataset=Dataset.from_dict({"input_ids": ids[: job["batch"]]}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        if job["lora"]
        else None,
        callbacks=[Clock()],
    )
    trainer.train()
    return {
        **pace(moments, job),
        "completion_length": statistics.mean(lengths),
        "optimizer_steps": job["rollouts"] * job["epochs"],
        "peak_mib": memory() - imports,
    }


def pace(moments: list[tuple[float, float]], job: dict) -> dict:
    """Speed between the end of the first rollout, which warms up, and that of the last."""
    episodes = job["batch"] * (len(moments) - 1)
    wall, cpu = (b - a for a, b in zip(moments[0], moments[-1], strict=True))
    return {"episodes_per_second": episodes / wall, "cpu_seconds_per_episode": cpu / episodes}


def memory() -> float:
    """Most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- alternating


def peer_python(folder: Path) -> Path:
    """The interpreter of an environment with trl 1.12.0 over this one's packages."""
    python = folder / "bin/python"
    packages = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    if not (packages / "trl/experimental/ppo").is_dir():
        venv.create(folder, with_pip=True)
        (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        command = [str(python), "-m", "pip", "install", "-q", "--no-deps", "trl==1.12.0"]
        subprocess.run(command, check=True)
    return python


def one(python: Path, who: str, job: dict) -> dict:
    """One training run in a process of its own."""
    command = [str(python), __file__, "--worker", who, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> dict[str, str]:
    """For both: no network, this checkout, and threads that sleep where they wait for each other
    (unless the environment says otherwise), so that a busy machine slows both alike.
    """
    asleep = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    ours = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return {**asleep, **os.environ, **ours}


def same_work(setting: str, ours: dict, theirs: dict) -> None:
    """Refuse to compare runs that didn't do the same."""
    lengths = ours["completion_length"], theirs["completion_length"]
    steps = ours["optimizer_steps"], theirs["optimizer_steps"]
    if abs(lengths[0] / lengths[1] - 1) > 0.02 or steps[0] != steps[1]:
        raise SystemExit(
            f"{setting}: not the same work, so there is no ratio: completions of {lengths[0]:.2f} "
            f"and {lengths[1]:.2f} tokens, {steps[0]} and {steps[1]} optimizer steps"
        )


def compare(setting: str, pairs: int, quick: bool, env: Path) -> dict:
    """Alternate ours and TRL's; ratios of episodes a second and of peak memory."""
    peer = peer_python(env)
    small = {"batch": 16, "micro": 4, "rollouts": 2, "epochs": 2} if quick else {}
    usual = {"batch": 64, "micro": 8, "rollouts": 4, "epochs": 4, "ours": {}}
    job = {**usual, **SETTINGS[setting], **small}
    ours, theirs = [], []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            ours.append(one(Path(sys.executable), "ours", {**job, "folder": folder}))
            theirs.append(one(peer, "trl", {**job, "folder": folder}))
        print(f"{setting}: ours {ours[-1]}\n{setting}: trl  {theirs[-1]}", file=sys.stderr)
        same_work(setting, ours[-1], theirs[-1])
    speed = ratios(ours, theirs, "episodes_per_second")
    room = ratios(ours, theirs, "peak_mib")

    def median(runs: list[dict], key: str) -> float:
        return statistics.median(run[key] for run in runs)

    return {
        "name": f"ppo_vs_trl/{setting}",
        "ratio_median": statistics.median(speed),
        "ratio_min": min(speed),
        "ratio_max": max(speed),
        "memory_ratio_median": statistics.median(room),
        "memory_ratio_min": min(room),
        "memory_ratio_max": max(room),
        "cpu_ratio_median": statistics.median(ratios(theirs, ours, "cpu_seconds_per_episode")),
        "ours": {k: median(ours, k) for k in KEPT},
        "peer": {k: median(theirs, k) for k in KEPT},
        "setting": f"{job}, {pairs} alternating pairs, trl 1.12.0",
    }


def ratios(a: list[dict], b: list[dict], key: str) -> list[float]:
    """Each run's number to that of the run beside it."""
    return [x[key] / y[key] for x, y in zip(a, b, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="results as the last line of stdout")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--setting", choices=SETTINGS, action="append")
    parser.add_argument("--quick", action="store_true", help="a small run that shows that it works")
    parser.add_argument("--env", type=Path, default=ROOT / "build/trl-1.12.0")
    parser.add_argument("--worker", choices=("ours", "trl"))
    parser.add_argument("--job", type=json.loads)
    options = parser.parse_args()
    if options.worker:
        run = run_ours if options.worker == "ours" else run_trl
        print(json.dumps(run(options.job)))
        return
    found = [
        compare(setting, options.pairs, options.quick, options.env)
        for setting in options.setting or SETTINGS
    ]
    for row in found:
        print(
            f"{row['name']}: {row['ratio_median']:.2f}x episodes/s "
            f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f}), "
            f"{row['memory_ratio_median']:.2f}x peak memory"
        )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
