"""Two seconds of looking before anything is loaded: what will be done, or what is wrong."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from align.checkpoint.inspect import CheckpointInfo, inspect_checkpoint, local_folder, resolve
from align.checkpoint.lineage import chat_template_sha256, read_lineage
from align.checkpoint.output import in_use, output_state, resumable, tidy
from align.checkpoint.template import Template, find_template, render_template
from align.checkpoint.tokenizer_files import TokenizerFiles, pad_token
from align.errors import CheckpointError, ConfigError, is_main_process
from align.room import check_room
from align.strict_yaml import read_yaml

KINDS = {"sft": "prompt-completion", "reward": "preference", "ppo": "prompt-only"}
WORD = "ANSWER"
SCORERS = ("reward_model", "gold_reward_model")
REWARD_LIKE = (*SCORERS, "value_model")
ADDRESSES = ("reward_url", "vllm_url")


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
    """Values that exclude each other, or that this machine has not.

    Raises:
        ConfigError: naming the field.
    """
    if config.load_in_4bit and not config.use_peft:
        raise ConfigError("load_in_4bit freezes the base; it needs use_peft: true")
    if getattr(config, "packing", False) and config.attn_implementation != "flash_attention_2":
        raise ConfigError(
            f"packing with attn_implementation {config.attn_implementation} would let records read "
            "each other; set attn_implementation: flash_attention_2, or packing: false"
        )
    if config.model_revision and Path(config.model_name_or_path).is_dir():
        raise ConfigError(
            f"model_revision is {config.model_revision} and model_name_or_path "
            f"{config.model_name_or_path} is a folder, which has but one; leave model_revision out"
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
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file:
        inside = "" if file == folder else f"is inside {file}, which "
        raise ConfigError(f"output_dir {folder} {inside}is a file; give a folder")
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
