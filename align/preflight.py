"""Two seconds of looking before anything is loaded: what will be done, or what is wrong."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from align.checkpoint.inspect import CheckpointInfo, inspect_checkpoint, local_folder, resolve
from align.checkpoint.lineage import chat_template_sha256, read_lineage
from align.checkpoint.save import in_use, output_state, resumable, tidy
from align.checkpoint.template import Template, find_template, render_template
from align.checkpoint.tokenizer_files import TokenizerFiles, pad_token
from align.errors import CheckpointError, ConfigError, is_main_process
from align.parsing import read_yaml

KINDS = {"sft": "prompt-completion", "reward": "preference", "ppo": "prompt-only"}
WORD = "ANSWER"
SCORERS = ("reward_model", "gold_reward_model")
REWARD_LIKE = (*SCORERS, "value_model")
ADDRESSES = ("reward_url", "vllm_url")
POSITIVE = (
    *("learning_rate", "value_learning_rate", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "num_train_epochs", "max_length", "dataset_limit", "lora_r"),
    *("lora_layers", "lora_alpha", "logging_steps", "save_steps", "center_max_new_tokens"),
    *("kl_horizon", "cliprange", "cliprange_value", "score_clip", "kl_target", "kl_budget"),
)
NOT_NEGATIVE = (
    *("warmup_steps", "weight_decay", "max_grad_norm", "guard_loss_spike", "center_samples"),
    *("kl_coef", "vf_coef", "eval_steps", "critic_warmup_rollouts", "reward_retries"),
)
RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (POSITIVE, lambda v: v > 0, "above 0"),
    (NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
    (("eval_fraction", "invalid_fraction", "lora_dropout"), lambda v: 0 <= v < 1, "in [0, 1)"),
    (("gamma", "lam"), lambda v: 0 <= v <= 1, "in [0, 1]"),
    (("max_steps",), lambda v: v == -1 or v > 0, "above 0, or -1 for as many as num_train_epochs"),
)
"""Fields, what their values must fulfil, and how that is said."""


class Preflight(NamedTuple):
    """What the checks found."""

    finished: bool
    """The output directory holds this very run, finished: there is nothing to do."""
    lines: list[str]


def preflight(config: Any, made_before: Sequence[str] = (), quiet: bool = False) -> Preflight:
    """Check a stage's input; one line each on stderr of rank 0; the first failure raises.

    Args:
        config: of the stage
        made_before: checkpoints that earlier stages of the same run will have made
        quiet: say nothing of what is right

    Raises:
        ConfigError, CheckpointError, DataError: what is wrong and what to do.
    """
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if is_main_process() and not quiet:
            print(f"preflight: {line}", file=sys.stderr, flush=True)

    check_values(config)
    check_launch(config, os.environ)
    finished = check_output(config, say)
    if finished:
        return Preflight(True, lines)
    info = None
    if config.model_name_or_path in made_before:
        say(f"model: {config.model_name_or_path}, which an earlier stage makes")
    else:
        info = check_model(config, say)
    check_template(config, info, say)
    for name in filter(None, (getattr(config, field, None) for field in SCORERS)):
        if name in made_before:
            say(f"reward model: {name}, which an earlier stage makes")
        else:
            check_reward_model(name, say)
    for field in ADDRESSES:
        if getattr(config, field, None):
            say(f"{field}: {getattr(config, field)}, which gets the run's texts; not asked yet")
    if getattr(config, "value_model", None) not in (None, *made_before):
        resolve(config.value_model)
    check_data(config, say)
    check_room(config, info, say)
    return Preflight(False, lines)


def check_values(config: Any) -> None:
    """Values that are of the right type and still can't be.

    Raises:
        ConfigError: naming the field.
    """
    for names, right, words in RANGES:
        for name in names:
            value = getattr(config, name, None)
            if value is not None and not right(value):
                raise ConfigError(f"{name} is {value}; it must be {words}")
    if any(weight <= 0 for weight in config.datasets.values()):
        raise ConfigError(f"datasets has a weight of 0 or less: {config.datasets}; leave it out")
    if config.load_in_4bit and not config.use_peft:
        raise ConfigError("load_in_4bit freezes the base; it needs use_peft: true")
    if getattr(config, "packing", False) and config.attn_implementation != "flash_attention_2":
        raise ConfigError(
            f"packing with attn_implementation {config.attn_implementation} would let records read "
            "each other; set attn_implementation: flash_attention_2, or packing: false"
        )
    for name in ADDRESSES:
        if getattr(config, name, None) is not None:
            check_address(name, getattr(config, name))
    for tracker in config.report_to:
        if not _installed(tracker):
            raise ConfigError(
                f"report_to names {tracker}, which is not installed; pip install {tracker}, or "
                "leave it out"
            )
    parents = (config.model_name_or_path, *(getattr(config, n, None) for n in REWARD_LIKE))
    for name in filter(None, parents):
        if Path(name).resolve() == Path(config.output_dir).resolve():
            raise ConfigError(
                f"output_dir {config.output_dir} is the checkpoint that this stage starts from; "
                "give another folder"
            )


def _installed(package: str) -> bool:
    """Whether a package is there; a folder of its name (wandb leaves one) is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def check_address(name: str, url: str) -> None:
    """An http(s) address, as far as its form goes: nothing is sent.

    Raises:
        ConfigError: naming the field.
    """
    try:
        parts = urlsplit(url)
        wrong = (
            "it must begin with http:// or https://"
            if parts.scheme not in ("http", "https")
            else "it names no host"
            if not parts.hostname
            else "it holds a space"
            if any(c.isspace() for c in url)
            else "it holds a password, and recipes are kept; give a token by the environment"
            if "@" in parts.netloc
            else f"port {parts.port} can't be"
            if parts.port == 0
            else ""
        )
    except ValueError as error:
        wrong = f"it can't be read ({error})"
    if wrong:
        shown = url if "@" not in url else "(not shown)"
        raise ConfigError(f"{name} is {shown}; {wrong}: give one like http://127.0.0.1:8000")


def check_launch(config: Any, launch: Mapping[str, str]) -> None:
    """The launcher's mode: what is missing for it, and what a stage can't do in it.

    Args:
        config: of the stage
        launch: the environment that accelerate gives a program it starts

    Raises:
        ConfigError: naming the mode, and one to use instead.
    """
    deepspeed = launch.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    sharded = launch.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if config.stage == "ppo" and deepspeed:
        raise ConfigError(
            "PPO does not run under DeepSpeed: it samples from whole weights and saves optimizer "
            "states itself, and ZeRO holds both in pieces that it can't read; launch with "
            "recipes/accelerate/fsdp2.yaml, which shards as much, or with ddp.yaml"
        )
    if deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "the launcher asks for DeepSpeed, which is not installed; pip install deepspeed, or "
            "launch with recipes/accelerate/fsdp2.yaml, which shards as much and needs nothing more"
        )
    if config.stage == "ppo" and sharded and launch.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            f"PPO shards with FSDP2 and the launcher asks for version "
            f"{launch.get('FSDP_VERSION', '1')}; set fsdp_version: 2 in its config, or launch with "
            "recipes/accelerate/fsdp2.yaml"
        )
    if config.stage == "ppo" and sharded and config.load_in_4bit:
        raise ConfigError(
            "load_in_4bit packs weights so that FSDP2 can't put them together again for sampling; "
            "leave it out, or launch with recipes/accelerate/ddp.yaml"
        )


def launched_as(file: Path) -> dict[str, str]:
    """The environment, as far as `check_launch` reads it, that an accelerate config leads to."""
    values = read_yaml(file)
    kind = str(values.get("distributed_type", "")).upper()
    version = (values.get("fsdp_config") or {}).get("fsdp_version", 1)
    return {
        "ACCELERATE_USE_DEEPSPEED": str(kind == "DEEPSPEED"),
        "ACCELERATE_USE_FSDP": str(kind == "FSDP"),
        "FSDP_VERSION": str(version),
    }


def check_output(config: Any, say: Any) -> bool:
    """The output directory is free, to be resumed, or to be overwritten; True: all done already.

    Raises:
        ConfigError: it holds something else.
        CheckpointError: there is a checkpoint to go on from, and it is damaged.
    """
    folder = Path(config.output_dir)
    if folder.is_file():
        raise ConfigError(f"output_dir {folder} is a file; give a folder")
    found = output_state(folder, config)
    if found.state == "empty":
        say(f"output: {folder}, new")
        return False
    if found.state == "foreign":
        raise ConfigError(
            f"output_dir {folder} holds files that are no run of align; give another folder"
        )
    if config.overwrite:
        say(f"output: {folder} holds a run of {found.stage}, which will be deleted (--overwrite)")
        return False
    if not config.resume:
        raise ConfigError(in_use(folder, found))
    if found.stage != config.stage or found.differs:
        what = found.differs[0] if found.differs else f"stage: {found.stage} -> {config.stage}"
        raise ConfigError(
            f"{folder} can't be resumed with another recipe ({what}); put the value back, "
            "give --overwrite, or another --output_dir"
        )
    if found.state == "finished":
        if is_main_process():
            tidy(folder)
        say(f"output: {folder} holds this run, finished; nothing to do")
        return True
    newest, broken = resumable(folder)
    none = "no checkpoint was written to its end" if any(folder.glob("checkpoint-*")) else ""
    at = f"from {newest.name}" if newest else f"from the start ({none or 'nothing was saved yet'})"
    left_out = f"; {broken.name} is damaged and left out" if broken else ""
    say(f"output: {folder}, resumed {at}{left_out}")
    return False


def check_model(config: Any, say: Any) -> CheckpointInfo | None:
    """The parent's header, vocabulary and context; None for a Hub id that is not here yet.

    Raises:
        CheckpointError, ConfigError: what `inspect_checkpoint` finds; max_length over the context.
    """
    name, revision = config.model_name_or_path, config.model_revision
    if local_folder(name, revision) is None:
        say(f"model: {resolve(name, revision)} is not on this machine; checked after its download")
        return None
    info = inspect_checkpoint(name, revision, expect="causal")
    base = f" on {info.base}" if info.base else ""
    say(
        f"model: {name}: {info.architecture}{base}, {info.parameters:,} parameters, {info.dtype}, "
        f"context {info.context}"
    )
    if info.context and config.max_length > info.context:
        raise ConfigError(
            f"max_length {config.max_length} is longer than the context of {name} "
            f"({info.context} tokens); set max_length: {info.context} or less"
        )
    return info


def check_template(config: Any, info: CheckpointInfo | None, say: Any) -> None:
    """Which chat template, PAD and EOS, and what follows from them.

    Raises:
        CheckpointError: no template, one that writes no EOS, or not the parent's.
    """
    template = (
        find_template(info.path if info else None, config.chat_template)
        if (info or config.chat_template)
        else None
    )
    if info is None or template is None:
        return
    files = TokenizerFiles.read(info.path)
    if not files.vocabulary:
        say("tokenizer: no tokenizer.json here; template, PAD and EOS are checked after loading")
        return
    names = {i: token for token, i in files.vocabulary.items()}
    ends = [names[i] for i in info.eos_token_ids if i in names]
    _same_as_parent(config, info, template)
    _writes_eos(template, files, ends)
    say(f"template: {template.source}; it ends a completion with {ends[0]!r}")
    pad = pad_token(files.vocabulary, files.pad_token, [files.eos_token], files.unk_token)
    if pad == files.pad_token:
        say(f"PAD {pad!r}, EOS {', '.join(map(repr, ends))}: apart, as they must be")
        return
    was = f"PAD was {files.pad_token!r}" if files.pad_token else "there was no PAD"
    how = "a spare token" if pad in files.vocabulary else "a new token"
    say(f"PAD {pad!r} ({how}; {was}), EOS {', '.join(map(repr, ends))}: so EOS is learnt and seen")


def _writes_eos(template: Template, files: TokenizerFiles, ends: list[str]) -> None:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": WORD}]
    tokens: dict[str, Any] = {"eos_token": files.eos_token, "bos_token": files.bos_token}
    whole = render_template(template.text, messages, **tokens)
    tail = whole.rpartition(WORD)[2]
    if not any(end in tail for end in ends):
        raise CheckpointError(
            f"the chat template ({template.source}) ends a completion with {tail!r}, which is no "
            f"EOS ({', '.join(map(repr, ends))}), so the model would never learn to stop; write "
            "eos_token after the assistant's content, or use --chat_template plain"
        )
    prompt = render_template(template.text, messages[:1], add_generation_prompt=True, **tokens)
    if not whole.startswith(prompt):
        raise CheckpointError(
            f"the chat template ({template.source}) renders a prompt differently when a completion "
            f"follows ({prompt!r} is not how {whole!r} begins); give another with --chat_template"
        )


def _same_as_parent(config: Any, info: CheckpointInfo, template: Template) -> None:
    """The same template bytes at every stage."""
    before = read_lineage(info.path).get("chat_template_sha256")
    if before and before != chat_template_sha256(template.text):
        raise CheckpointError(
            f"the chat template ({template.source}) is not the one that {info.path} was trained "
            "with (lineage.json); leave out --chat_template to use the checkpoint's own"
        )


def check_reward_model(name: str, say: Any) -> None:
    """A reward model of a PPO stage.

    Raises:
        CheckpointError: none, a head of the wrong size, blind to EOS.
    """
    if local_folder(name) is None:
        say(f"reward model: {name} is not on this machine; checked after download")
        return
    info = inspect_checkpoint(name, expect="reward")
    if info.pad_token_id is None or info.pad_token_id in info.eos_token_ids:
        raise CheckpointError(
            f"the reward model {name} has PAD {info.pad_token_id} and EOS "
            f"{info.eos_token_ids}: it is blind to EOS; train it again with recipes/reward.py"
        )
    say(f"reward model: {name}: {info.architecture}, one output, PAD apart from EOS")


def check_data(config: Any, say: Any) -> None:
    """Every row of every card (or the first 10,000).

    Raises:
        DataError: what `align.data.validate_card` finds.
    """
    data = importlib.import_module("align.data")
    for name in config.datasets:
        card = data.load_card(name)
        found = data.validate_card(
            card, KINDS[config.stage], invalid_fraction=config.invalid_fraction
        )
        say(f"data: {found.line()}")


def check_room(config: Any, info: CheckpointInfo | None, say: Any) -> None:
    """Free disk and memory against rough needs.

    Raises:
        ConfigError: the disk can't be written or has not three checkpoints' room; the weights and
            optimizer alone need more memory than is free.
    """
    folder = Path(config.output_dir).absolute()
    there = next(p for p in (folder, *folder.parents) if p.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        raise ConfigError(
            f"can't write to {there} ({error.strerror}); give another --output_dir"
        ) from error
    if info is None:
        return
    need = estimate(config, info)
    free_disk = shutil.disk_usage(there).free
    if free_disk < 3 * need.checkpoint:
        raise ConfigError(
            f"{there} has {gib(free_disk)} free and three checkpoints of {config.stage} need "
            f"{gib(3 * need.checkpoint)}; free some space, or give another --output_dir"
        )
    free, where = free_memory()
    say(
        f"room: about {gib(need.state + need.activations)} of {gib(free)} {where} memory, "
        f"{gib(need.checkpoint)} a checkpoint of {gib(free_disk)} free on the disk"
    )
    if need.state > free:
        raise ConfigError(
            f"weights, gradients and optimizer of {config.model_name_or_path} need about "
            f"{gib(need.state)} and {gib(free)} of {where} memory are free; use --use_peft true, "
            "--dtype bfloat16, or more devices with recipes/accelerate/fsdp2.yaml"
        )


class Need(NamedTuple):
    """Bytes that one process needs, roughly."""

    checkpoint: int
    state: int
    activations: int


def estimate(config: Any, info: CheckpointInfo) -> Need:
    """Bytes: weights + gradients + two Adam moments, and activations, of one process.

    Without LoRA, PPO holds a policy, a value model, a reference and, where there is one, a reward
    model. Its checkpoint holds a policy more for each that it keeps beside the one in training.
    Activations: about 34 bytes a token, layer and unit of width (2205.05198, section 4.1, halved
    or doubled with the type), one layer's worth with gradient checkpointing.
    """
    parent = inspect_checkpoint(info.base) if info.base else info
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[config.dtype]
    total = parent.parameters
    trained = total
    if config.use_peft:  # both factors of every linear layer, seven a block
        layers = min(config.lora_layers or parent.layers, parent.layers)
        trained = 7 * layers * 2 * config.lora_r * parent.hidden_size
    ppo = config.stage == "ppo"  # it trains a value model too
    kept = sum(getattr(config, name, None) is not None for name in ("ema_decay", "kl_budget"))
    models = 1 if config.use_peft or not ppo else 3 + bool(config.reward_model)
    held = models * (total / 2 if config.load_in_4bit else total * width)
    learning = trained * (2 if ppo else 1)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", os.environ.get("ACCELERATE_USE_DEEPSPEED", ""))
    shards = int(os.environ.get("WORLD_SIZE", "1")) if sharded.lower() == "true" else 1
    tokens = config.per_device_train_batch_size * config.max_length
    layers = 1 if config.gradient_checkpointing else max(parent.layers, 1)
    bytes_a_unit = 17 * (2 if config.bf16 else width)
    return Need(
        checkpoint=int((learning * 3 + trained * kept) * width),
        state=int((held + learning * width * 3) / shards),
        activations=int(tokens * layers * parent.hidden_size * bytes_a_unit),
    )


def free_memory() -> tuple[int, str]:
    """Free bytes of the first GPU, else of the machine."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    if shutil.which("nvidia-smi"):
        try:
            out = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
            return int(out.stdout.split()[0]) * 2**20, "GPU"
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            pass
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines() if sys.platform == "linux" else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024, "machine"
    return pages, "machine"


def gib(size: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"
