"""Fixed rollouts on which align.ppo is compared with TRL 1.12.0, and what align.ppo makes of them.

``benchmarks/ppo_parity.py`` runs TRL on the same rollouts and keeps its numbers in
``golden/trl_1_12_ppo.json``; ``unit/test_ppo_parity.py`` compares. Weights, tokens and scores come
from Python's own generator, so they are the same on every machine and in every version.

The policy and the value model that train differ a little from those of the rollout: otherwise
every ratio would be 1 and nothing would be clipped.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

WORDS, PAD, EOS = 24, 0, 1
GOLDEN = Path(__file__).parent / "golden/trl_1_12_ppo.json"
PER_TOKEN = ("logprobs", "ref_logprobs", "kl", "values", "rewards", "advantages", "returns")
PER_STEP = (
    "policy_loss", "value_loss", "total_loss", "grad_norm_policy", "grad_norm_value",
    "clipfrac", "clipfrac_value", "ratio",
)  # fmt: skip
LEARNING_RATE, ADAM_EPSILON = 1e-3, 1e-5
NO_LIMIT = 1e9  # of the gradient's norm


@dataclass(frozen=True)
class Case:
    """A rollout with its hyper-parameters; both sides take all of them."""

    completions: str = "full"
    """full: all end by EOS at the length limit; ragged: most before; cut: none has an EOS."""
    rows: int = 8
    width: int = 10
    micro: int = 8
    """Rows in a forward pass of ours."""
    peer_micro: int = 8
    """per_device_train_batch_size of TRL, whose accumulation steps fill up the batch."""
    num_mini_batches: int = 1
    num_ppo_epochs: int = 1
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    kl_coef: float = 0.05
    temperature: float = 1.0
    whiten_rewards: bool = False
    missing_eos_penalty: float = 0.0
    max_grad_norm: float = NO_LIMIT
    agree: tuple[str, ...] = (*PER_TOKEN, *PER_STEP)
    """What has to be equal; the rest is an intended difference."""
    last_of_data: bool = False
    """Whether TRL's own loader brings the batch, as the last one of a pass over the data."""
    as_shipped: bool = False
    """Whether variances stay as they are here; else they are divided by n - 1, as TRL does."""


BEFORE_REWARDS = ("logprobs", "ref_logprobs", "kl", "values")
POLICY_SIDE = (
    *BEFORE_REWARDS, "advantages", "returns", "policy_loss", "grad_norm_policy", "clipfrac",
)  # fmt: skip

CASES = {
    "plain": Case(),
    "whitened rewards": Case(whiten_rewards=True, lam=1.0),
    "discounted": Case(gamma=0.9, lam=0.8, kl_coef=0.3),
    "narrow clips": Case(cliprange=0.05, cliprange_value=0.02, vf_coef=1.0, num_ppo_epochs=2),
    "wide clips": Case(cliprange=0.5, cliprange_value=5.0, num_ppo_epochs=2, whiten_rewards=True),
    "cool": Case(temperature=0.7, num_ppo_epochs=2),
    "cut": Case(completions="cut", missing_eos_penalty=1.0, gamma=0.95),
    "micro-batches": Case(micro=4, peer_micro=4, num_ppo_epochs=2),
    "mini-batches": Case(micro=4, num_mini_batches=2, num_ppo_epochs=2),
    # Enough tokens that n and n - 1 are the same to 1e-4 in the losses (not in the gradient).
    "large": Case(
        rows=64,
        width=32,
        micro=32,
        peer_micro=64,
        gamma=0.95,
        num_ppo_epochs=2,
        agree=tuple(n for n in PER_STEP if n != "grad_norm_policy"),
        as_shipped=True,
    ),
    # TRL puts the score of a completion that ended early one token too late, and with it a value
    # of the state after EOS. With gamma = lam = 1 that value cancels out of the advantages.
    "ragged": Case(completions="ragged", lam=1.0, agree=POLICY_SIDE),
    "ragged, micro-batches": Case(
        completions="ragged", lam=1.0, micro=4, peer_micro=4, agree=BEFORE_REWARDS
    ),
    "ragged, discounted": Case(completions="ragged", gamma=0.9, lam=0.8, agree=BEFORE_REWARDS),
    # TRL's accumulation counts micro-batches across mini-batches: one step in place of two.
    "straddling": Case(micro=4, peer_micro=4, num_mini_batches=2, agree=PER_TOKEN),
    # TRL's accumulation ends where the data end: there it steps after every micro-batch.
    "last batch": Case(micro=4, peer_micro=4, last_of_data=True, agree=PER_TOKEN),
    "tight norm": Case(
        max_grad_norm=0.01,
        agree=tuple(n for n in (*PER_TOKEN, *PER_STEP) if "norm" not in n),
    ),
}


class Inputs(NamedTuple):
    """Token ids of prompts and completions (EOS included), and a score for each."""

    prompts: list[list[int]]
    completions: list[list[int]]
    scores: list[float]


def inputs(case: Case) -> Inputs:
    """What both sides are given."""
    draw = random.Random(f"{case.completions} {case.rows} {case.width}")

    def words(n: int) -> list[int]:
        return [draw.randrange(2, WORDS) for _ in range(n)]

    prompts = [words(3 + i % 5) for i in range(case.rows)]
    lengths = [case.width] * case.rows
    if case.completions == "ragged":
        lengths[1:] = [draw.randint(2, case.width - 1) for _ in lengths[1:]]
    completions = [words(n) for n in lengths]
    if case.completions != "cut":
        completions = [[*c[:-1], EOS] for c in completions]
    return Inputs(prompts, completions, [draw.gauss(0.3, 1) for _ in prompts])


# ---------------------------------------------------------------- models


def tokenizer() -> Any:
    """One token a word; left padding, which TRL's collator needs."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, WORDS)}}
    core = Tokenizer(models.WordLevel(words, "w2"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    made.padding_side = "left"
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


class Models(NamedTuple):
    """Those that train, those of the rollout, and the reference."""

    policy: Any
    value: Any
    old_policy: Any
    old_value: Any
    reference: Any


def networks() -> Models:
    """Five Llamas of some 6,000 parameters."""
    return Models(
        policy=network("policy", "new", 0.0),
        value=network("value", "new", 0.0),
        old_policy=network("policy", "old", 0.03),
        old_value=network("value", "old", 0.05),
        reference=network("policy", "reference", 0.1),
    )


def network(family: str, member: str, distance: float) -> Any:
    """A language model (policy) or one with a scalar head (value), ``distance`` from its family."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    model = (LlamaForCausalLM if family == "policy" else LlamaForSequenceClassification)(config)
    for name, weight in model.named_parameters():
        values = normal(f"{family} {name}", weight.numel())
        noise = normal(f"{family} {member} {name}", weight.numel())
        mixed = torch.tensor([v + distance * x for v, x in zip(values, noise, strict=True)])
        scale = 1.5 if "head" in name or "embed" in name else 1.2
        made = 1 + 0.1 * mixed if weight.dim() == 1 else scale * mixed / weight.shape[1] ** 0.5
        weight.data.copy_(made.reshape(weight.shape))
    return model.eval()


def normal(seed: str, n: int) -> list[float]:
    """``n`` numbers with mean 0 and variance 1."""
    draw = random.Random(seed)
    return [draw.gauss(0, 1) for _ in range(n)]


# ---------------------------------------------------------------- what align.ppo makes of them


def trainer(case: Case, folder: Path, **options: Any) -> Any:
    """A PPOTrainer whose networks are those of the rollout."""
    from align.config import PPOStage
    from align.ppo.build import assemble
    from align.ppo.rewards import Rewards
    from align.ppo.trainer import PPOTrainer

    shared = (
        "num_mini_batches", "num_ppo_epochs", "gamma", "lam", "cliprange", "cliprange_value",
        "vf_coef", "kl_coef", "temperature", "whiten_rewards", "missing_eos_penalty",
        "max_grad_norm",
    )  # fmt: skip
    values: dict[str, Any] = {
        "model_name_or_path": "random",
        "datasets": {"random": 1.0},
        "output_dir": str(folder),
        "reward_functions": {"fixed": 1.0},
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "per_device_train_batch_size": case.micro,
        "gradient_accumulation_steps": case.rows // (case.micro * case.num_mini_batches),
        "total_episodes": case.rows,
        "max_completion_length": case.width,
        "max_length": 64,
        "truncated": "score",
        **{name: getattr(case, name) for name in shared},
        **options,
    }
    models, scores = networks(), torch.tensor(inputs(case).scores)
    own = assemble(models.old_policy, models.old_value, seed=0)
    own.reference = models.reference.requires_grad_(False)
    own.value_head.bias.requires_grad_(False)  # TRL's value head has none
    return PPOTrainer(
        PPOStage(**values),
        own,
        tokenizer(),
        Rewards({"fixed": (1.0, lambda records, completions, ended: scores)}),
        [{"prompt": "w2"}],
        [],
        eos_token_ids=[EOS],
    )


def rolled_out(case: Case, of: Any) -> Any:
    """The `Rollout` of a case under the networks that the trainer ``of`` holds."""
    from align.ppo.generate import Completions
    from align.ppo.rollout import Prompt

    given = inputs(case)
    ids = torch.tensor([c + [PAD] * (case.width - len(c)) for c in given.completions])
    prompts = [Prompt({"prompt": ""}, p) for p in given.prompts]
    return of._score(prompts, Completions(ids, real_mask(case), (ids == EOS).any(1)))


def become_the_models_that_train(of: Any) -> None:
    """Put the weights of policy and value model in the place of those of the rollout."""
    models = networks()
    of.networks.policy.load_state_dict(models.policy.state_dict())
    of.networks.value_backbone.load_state_dict(models.value.base_model.state_dict())
    of.networks.value_head.weight.data.copy_(models.value.score.weight.data)


def ours(case: Case, folder: Path, **options: Any) -> dict[str, Any]:
    """The numbers of `PER_TOKEN`, (B, T), and of `PER_STEP`, one an optimizer step."""
    from align.ppo.advantages import kl_estimates

    made = trainer(case, folder, **options)
    rollout = rolled_out(case, made)
    with nullcontext() if case.as_shipped else variances_as_trl():
        batch = made._advantages(rollout)
    numbers: dict[str, Any] = {
        "logprobs": rollout.logprobs,
        "ref_logprobs": rollout.ref_logprobs,
        "kl": kl_estimates(rollout.logprobs, rollout.ref_logprobs).k1,
        "values": rollout.values,
        "rewards": batch.rewards,
        "advantages": batch.advantages,
        "returns": batch.returns,
    }
    become_the_models_that_train(made)
    steps = watch_steps(made)
    with mock.patch("torch.randperm", lambda n, generator=None: torch.arange(n)):
        logged = made.learner.learn(batch, made.progress)
    return {
        **{name: values.tolist() for name, values in numbers.items()},
        **{name: [step[name] for step in steps] for name in PER_STEP},
        "logged": logged,
    }


def watch_steps(of: Any) -> list[dict[str, float]]:
    """A list to which every optimizer step of ``of`` adds its numbers of `PER_STEP`."""
    from align.ppo import learner

    steps: list[dict[str, float]] = []
    now: dict[str, float] = {}
    tokens = {"policy": 0, "value": 0}

    def add(name: str, amount: Any) -> None:
        now[name] = now.get(name, 0.0) + float(amount.detach())

    def policy_loss(logprobs: Tensor, *rest: Any, **more: Any) -> Any:
        out = kept["policy_loss"](logprobs, *rest, **more)
        tokens["policy"] += len(logprobs)
        add("policy_loss", out.loss)
        add("clipfrac", out.clipped)
        add("ratio", out.ratio_sum)
        return out

    def value_loss(values: Tensor, *rest: Any, **more: Any) -> Any:
        out = kept["value_loss"](values, *rest, **more)
        tokens["value"] += len(values)
        add("value_loss", out.loss)
        add("clipfrac_value", out.clipped)
        return out

    def backward(loss: Tensor) -> None:
        add("total_loss", loss)
        kept["backward"](loss)

    def step() -> None:
        for name in ("policy_loss", "clipfrac", "ratio"):
            now[name] /= tokens["policy"]
        for name in ("value_loss", "clipfrac_value"):
            now[name] /= tokens["value"]
        inner = of.networks
        now["grad_norm_policy"] = norm(inner.policy.parameters())
        now["grad_norm_value"] = norm([*inner.value_backbone.parameters(), inner.value_head.weight])
        steps.append(dict(now))
        now.clear()
        tokens.update(policy=0, value=0)
        kept["step"]()

    kept: dict[str, Any] = {
        "policy_loss": learner.policy_loss,
        "value_loss": learner.value_loss,
        "backward": of.accelerator.backward,
        "step": of.learner.optimizer.step,
    }
    of.accelerator.backward, of.learner.optimizer.step = backward, step

    def learn(*arguments: Any) -> Any:
        with mock.patch.multiple(learner, policy_loss=policy_loss, value_loss=value_loss):
            return inner_learn(*arguments)

    inner_learn = of.learner.learn
    of.learner.learn = learn
    return steps


def norm(parameters: Any) -> float:
    """Length of the gradient."""
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


@contextmanager
def variances_as_trl() -> Iterator[None]:
    """Variances divided by n - 1 in place of n: the one change that makes whitening TRL's."""
    from align.ppo import trainer as module
    from align.ppo.advantages import Moments, masked_moments

    def unbiased(x: Tensor, mask: Tensor, *rest: Any) -> Moments:
        mean, var = masked_moments(x, mask, *rest)
        n = int(mask.sum())
        return Moments(mean, var * n / (n - 1))

    with mock.patch.object(module, "masked_moments", unbiased):
        yield


# ---------------------------------------------------------------- comparing


def golden(name: str) -> dict[str, Any]:
    """TRL's numbers of a case."""
    numbers: dict[str, Any] = json.loads(GOLDEN.read_text())["cases"][name]["numbers"]
    return numbers


def real_mask(case: Case, extra: int = 0) -> Tensor:
    """(B, T), True on real completion tokens and on ``extra`` positions after them."""
    lengths = torch.tensor([len(c) + extra for c in inputs(case).completions])
    return torch.arange(case.width) < lengths.unsqueeze(1)


def differences(case: Case, mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Largest difference of each quantity, over real tokens; inf where there are not as many."""
    mask = real_mask(case)
    found = {}
    for name in (*PER_TOKEN, *PER_STEP):
        if name not in theirs:
            continue
        a, b = (torch.tensor(side[name], dtype=torch.float64) for side in (mine, theirs))
        if a.shape != b.shape:
            found[name] = float("inf")
        else:
            far = (a - b).abs()
            found[name] = float((far[mask] if name in PER_TOKEN else far).max())
    return found
