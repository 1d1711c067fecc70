"""The dataclasses of a recipe, one a stage.

A field's meaning and unit stand once, in the string right under it; ``--help`` prints that string.
Names are those of TrainingArguments and TRL wherever these have one. `align.parsing` fills them.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from align.errors import ConfigError
from align.limits import check_ranges


@dataclass(kw_only=True)
class StageConfig:
    """What every training stage reads."""

    stage: ClassVar[str]
    first: ClassVar[tuple[str, ...]] = (
        "model_name_or_path",
        "datasets",
        "output_dir",
        "learning_rate",
        "per_device_train_batch_size",
        "max_steps",
        "max_length",
        "use_peft",
        "seed",
        "resume",
    )

    model_name_or_path: str
    """Checkpoint directory, Hub id, or ``quickstart-base`` for the base inside the package."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    trust_remote_code: bool = False
    """Run Python code that comes with a Hub checkpoint."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; a model without sdpa is loaded with eager."""
    chat_template: str | None = None
    """A ``.jinja`` file, or a name under recipes/chat_templates; default: the tokenizer's own."""

    use_peft: bool = False
    """Train a LoRA adapter instead of all weights."""
    lora_r: int = 16
    """Rank of the adapter."""
    lora_alpha: int = 32
    """Scale of the adapter; the update is multiplied by alpha / r."""
    lora_dropout: float = 0.0
    """Dropout before the adapter."""
    lora_target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Which linear layers get an adapter."""
    lora_layers: int | None = None
    """Adapters in the last so many layers only; null: in all of them."""
    load_in_4bit: bool = False
    """Hold the frozen base in 4 bits (QLoRA; needs bitsandbytes and a GPU)."""

    datasets: dict[str, float]
    """Data card -> weight in the mixture."""
    dataset_limit: int | None = None
    """Use at most this many records of each card (drawn with the seed, not the first ones)."""
    eval_fraction: float = 0.05
    """Share of records held out, chosen by the hash of each record."""
    invalid_fraction: float = 0.01
    """Stop when more than this share of a card's records is invalid."""
    max_length: int = 512
    """Longest sequence in tokens; longer records are dropped and counted."""

    output_dir: str
    """Where the checkpoint goes."""
    resume: bool = False
    """Go on from the newest complete checkpoint in output_dir."""
    overwrite: bool = False
    """Delete what another run left in output_dir."""

    seed: int = 0
    """Seed of data order, initialisation and sampling."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """Shape of the schedule after warm-up."""
    warmup_steps: float = 0.0
    """Warm-up in optimizer steps, or as a share of all steps when below 1."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    per_device_train_batch_size: int
    """Sequences in one forward pass of one process (micro-batch)."""
    gradient_accumulation_steps: int = 1
    """Micro-batches in one optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    bf16: bool = False
    """Compute in bfloat16 by autocast; weights keep their dtype."""
    logging_steps: int = 10
    """Optimizer steps between two lines of metrics.jsonl."""
    save_steps: int = 100
    """Optimizer steps between two checkpoints from which a killed run goes on."""
    report_to: list[Literal["wandb", "trackio", "tensorboard"]] = field(default_factory=list)
    """Trackers that get the numbers of metrics.jsonl too; they must be installed."""

    def __post_init__(self) -> None:
        """Check numbers against their bounds.

        Raises:
            ConfigError: a value out of its range.
        """
        check_ranges(self)


@dataclass(kw_only=True)
class SFTStage(StageConfig):
    """Supervised fine-tuning on instructions, with chains of thought where records have them."""

    stage: ClassVar[str] = "sft"

    num_train_epochs: float = 1.0
    """Passes over the mixture; max_steps > 0 wins."""
    max_steps: int = -1
    """Optimizer steps; -1: as num_train_epochs says."""
    reasoning: Literal["plain", "think", "none"] = "plain"
    """How a chain of thought is rendered: plain text, inside <think> tags, or left out."""
    packing: bool = False
    """Pack several records into one sequence (needs flash_attention_2, which keeps them apart)."""
    guard_loss_spike: float = 10.0
    """Stop when the loss exceeds this multiple of its running median; 0 turns the guard off."""


@dataclass(kw_only=True)
class RewardStage(StageConfig):
    """Reward model on preference pairs (Bradley-Terry)."""

    stage: ClassVar[str] = "reward"

    num_train_epochs: float = 1.0
    """Passes over the pairs; one is what InstructGPT found best (2203.02155, appendix C.2)."""
    max_steps: int = -1
    """Optimizer steps; -1: as num_train_epochs says."""
    center_samples: int = 128
    """Samples of the SFT policy whose mean score becomes 0; with none scores stay as they are."""
    center_max_new_tokens: int = 64
    """Longest of these completions in tokens."""
    guard_loss_spike: float = 10.0
    """Stop when the loss exceeds this multiple of its running median; 0 turns the guard off."""


@dataclass(kw_only=True)
class PPOStage(StageConfig):
    """PPO from text prompts against a reward and a KL penalty to the SFT policy.

    A rollout is ``per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches``
    completions on each process. Each of ``num_ppo_epochs`` passes over it makes
    ``num_mini_batches`` optimizer steps.
    """

    stage: ClassVar[str] = "ppo"
    first: ClassVar[tuple[str, ...]] = (
        "model_name_or_path",
        "reward_model",
        "reward_functions",
        "datasets",
        "output_dir",
        "total_episodes",
        "max_completion_length",
        "learning_rate",
        "kl_coef",
        "kl_budget",
        "num_ppo_epochs",
        "per_device_train_batch_size",
        "use_peft",
        "seed",
        "resume",
    )

    reward_model: str | None = None
    """Reward model: checkpoint directory or Hub id; its tokenizer and template may differ."""
    reward_model_weight: float = 1.0
    """Weight of the reward model's score."""
    reward_functions: dict[str, float] | None = None
    """``module:function`` or ``file.py:function`` -> weight; called with (prompts, completions,
    records), returns one number for each completion."""
    reward_url: str | None = None
    """Scorer over HTTP: the address that gets prompts and completions as JSON."""
    reward_url_weight: float = 1.0
    """Weight of its score."""
    reward_timeout: float = 60.0
    """Seconds that a reward function, or a request to reward_url, may take for one batch."""
    reward_retries: int = 3
    """Further requests to reward_url after a connection error, a timeout or a status of 5xx."""
    gold_reward_model: str | None = None
    """Reward model that judges the held-out completions and is never optimised."""
    gold_functions: dict[str, float] | None = None
    """The same by Python functions, as reward_functions."""
    value_model: str | None = None
    """Reward-model-like checkpoint that the value model starts from; default: the reward model
    where its shapes and tokenizer fit the policy, else the policy's backbone with a new head."""

    total_episodes: int
    """Completions sampled in the whole run, over all processes."""
    max_completion_length: int = 128
    """Longest completion in tokens; max_length bounds prompt and completion together."""
    temperature: float = 1.0
    """Of sampling, and of all log-probabilities."""
    per_device_rollout_batch_size: int = 64
    """Prompts that one process completes at once."""
    rollout: Literal["local", "vllm"] = "local"
    """Who samples: the policy itself, or a vLLM server that gets its weights as files."""
    vllm_url: str | None = None
    """Address of that server, without ``/v1``; it must see output_dir under the same path."""
    vllm_timeout: float = 600.0
    """Seconds that one request to it may take: a completion, or loading the weights."""
    importance_cap: float = 2.0
    """Largest weight by which a token that the server sampled counts: its probability in training
    over that of the server (truncated importance sampling)."""
    num_ppo_epochs: int = 4
    """Passes over each rollout."""
    num_mini_batches: int = 1
    """Optimizer steps in one pass."""

    kl_coef: float = 0.05
    """Weight of the KL penalty in the reward."""
    kl_target: float | None = None
    """KL (k1, nats a completion) that an adaptive kl_coef steers to; null: kl_coef stays."""
    kl_horizon: int = 10_000
    """Episodes over which an adaptive kl_coef reacts."""
    kl_budget: float | None = None
    """Stop when KL (k1, nats a completion) exceeds this, with the last policy within it."""
    approx_kl_limit: float | None = None
    """End a rollout's epochs early when mean KL a token between old and new policy exceeds this."""

    normalize_scores: bool = False
    """Scale scores by the mean and standard deviation of all scores so far."""
    score_clip: float | None = None
    """Clip scores to plus and minus this, after normalising and before penalties and KL."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a completion that was cut at the length limit."""
    length_penalty: float = 0.0
    """Subtracted from the score for each token of the completion."""
    truncated: Literal["bootstrap", "score"] = "bootstrap"
    """What a completion that was cut ends with: the value of its last state in place of a score
    (it was not over), or the score of what is there (the limit is part of the task)."""
    whiten_rewards: bool = False
    """Scale rewards to unit variance before advantages are computed; their mean stays."""

    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """GAE: bias (0) against variance (1)."""
    cliprange: float = 0.2
    """Half width of the interval around 1 in which the ratio of probabilities counts."""
    dual_clip: float | None = None
    """Second clip, for negative advantages: the ratio above which they stop counting (above 1)."""
    cliprange_value: float = 0.2
    """How far a value may move from its value at the rollout."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus."""
    value_learning_rate: float | None = None
    """Peak learning rate of the value model; null: learning_rate."""
    critic_warmup_rollouts: int = 0
    """Rollouts at the start in which only the value model learns."""
    ptx_coef: float = 0.0
    """Weight of a pretraining loss on ptx_datasets (PPO-ptx, the cure for alignment tax)."""
    ptx_datasets: dict[str, float] | None = None
    """Data card -> weight of prompt-completion records for the pretraining loss."""
    ema_decay: float | None = None
    """Keep an average of the policy's weights, this much of it at each optimizer step, and save
    that as the result; null: the last weights."""

    logging_steps: int = 1
    """Rollouts between two lines of metrics.jsonl."""
    save_steps: int = 20
    """Rollouts between two checkpoints from which a killed run goes on."""
    eval_steps: int = 20
    """Rollouts between two evaluations on held-out prompts; 0: at the start and the end only."""
    eval_prompts: int = 128
    """Held-out prompts of an evaluation."""

    def __post_init__(self) -> None:
        """Check what a type can't say.

        Raises:
            ConfigError: a value out of its range, or two that exclude each other.
        """
        super().__post_init__()
        if not (self.reward_model or self.reward_functions or self.reward_url):
            raise ConfigError(
                "PPO has no reward; give reward_model or reward_functions or reward_url"
            )
        if (self.rollout == "vllm") != bool(self.vllm_url):
            raise ConfigError(
                f"rollout is {self.rollout} and vllm_url is {self.vllm_url}; a vLLM server needs "
                "both `rollout: vllm` and its address: give the other one or neither"
            )
        if self.rollout == "vllm" and self.load_in_4bit:
            raise ConfigError(
                "rollout: vllm needs whole weights to send and load_in_4bit holds them in 4 bits; "
                "set load_in_4bit: false, or rollout: local"
            )
        if self.use_peft and self.lora_dropout:
            raise ConfigError(
                f"lora_dropout is {self.lora_dropout}; PPO compares probabilities of the same "
                "weights, which dropout would change: set it to 0"
            )
        if self.use_peft and self.value_model:
            raise ConfigError(
                f"value_model is {self.value_model}; with use_peft the value model is an adapter "
                "on the policy's backbone: leave value_model out, or set use_peft: false"
            )
        if self.max_completion_length >= self.max_length:
            raise ConfigError(
                f"max_completion_length {self.max_completion_length} leaves no room for a prompt "
                f"in max_length {self.max_length}; lower the one or raise the other"
            )
        if bool(self.ptx_coef) != bool(self.ptx_datasets):
            raise ConfigError(
                f"ptx_coef is {self.ptx_coef} and ptx_datasets is {self.ptx_datasets}; "
                "PPO-ptx needs both: give the other one or neither"
            )


@dataclass(kw_only=True)
class EvalStage:
    """Evaluation of the base and of the checkpoints of a run."""

    stage: ClassVar[str] = "eval"
    first: ClassVar[tuple[str, ...]] = ("suites", "num_fewshot", "limit", "seed")

    suites: list[str]
    """Suites by name: benchmarks, tax, toxicity, bias, safety; or task names, or YAML files."""
    reward_suites: list[str] = field(default_factory=list)
    """Suites of the reward model, beside its own report on held-out pairs; none: not evaluated."""
    num_fewshot: int | None = None
    """Worked examples before each item; default: what the task says."""
    limit: int | None = None
    """Items of each task (drawn with the seed); default: all."""
    limits: dict[str, int] = field(default_factory=dict)
    """The same for single tasks, by name."""
    seed: int = 0
    """Seed of sampling and of the choice of items and examples."""
    batch_size: int | Literal["auto"] = "auto"
    """Sequences in one forward pass."""
    toxicity_model: str = "quickstart"
    """Classifier: quickstart (embedded), original, unbiased, multilingual, a file or Hub id
    (ID#LABEL where its class is not called toxic)."""

    def __post_init__(self) -> None:
        """Check numbers against their bounds.

        Raises:
            ConfigError: a value out of its range.
        """
        check_ranges(self)


STAGES: dict[str, type] = {c.stage: c for c in (SFTStage, RewardStage, PPOStage, EvalStage)}
