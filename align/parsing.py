"""From YAML and the command line to a recipe's dataclasses, strictly.

An unknown key is an error, and so is a key that the stage would not read.
"""

import argparse
import ast
import difflib
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from align import paths
from align.config import STAGES
from align.errors import ConfigError
from align.strict_yaml import read_yaml, yaml_value

# What people type from habit -> the field's name.
ALIASES = {
    "lr": "learning_rate",
    "model": "model_name_or_path",
    "base_model": "model_name_or_path",
    "revision": "model_revision",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "output": "output_dir",
    "dataset": "datasets",
    "data": "datasets",
    "dataset_name": "datasets",
    "max_seq_length": "max_length",
    "lora": "use_peft",
    "lora_rank": "lora_r",
    "rank": "lora_r",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "warmup_ratio": "warmup_steps",
    "clip_grad": "max_grad_norm",
    "torch_dtype": "dtype",
    "chat_template_path": "chat_template",
    "beta": "kl_coef",
    "clip_range": "cliprange",
    "reward_model_path": "reward_model",
    "fewshot": "num_fewshot",
}


class Parser(argparse.ArgumentParser):
    """argparse that reports mistakes as align's errors, with the nearest right word."""

    def __init__(self, prog: str, **options: Any) -> None:
        """Flags are written out: half a flag is taken for a misspelled one."""
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            ConfigError: always.
        """
        words = message.split("unrecognized arguments: ")[-1].split()
        flags = [f for a in self._actions for f in a.option_strings]
        near = difflib.get_close_matches(words[0].split("=")[0], flags, n=1) if words else []
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        raise ConfigError(f"{self.prog}: {message}; {hint}")


# ---------------------------------------------------------------- parsing


def parse(cls: type[Any], argv: Sequence[str] | None = None) -> Any:
    """Config of one stage from ``--config FILE`` and ``--field value``; default: the quickstart's.

    Raises:
        ConfigError: unknown key, wrong type, missing value, unreadable file.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if "--verbose" in args:
        args.remove("--verbose")
        os.environ["ALIGN_VERBOSE"] = "1"
    for flag in ("--help", "-h", "--help-all"):
        if flag in args:
            print(help_text(cls, everything=flag == "--help-all"))
            raise SystemExit(0)
    overrides = _split_flags(args)
    file = overrides.pop("config", None)
    path = Path(file) if file else paths.CONFIGS / "quickstart" / f"{cls.stage}.yaml"
    values = read_yaml(path)
    flags = {_known(cls, key, "--"): value for key, value in overrides.items()}
    return build(cls, {**values, **flags}, str(path), dict.fromkeys(flags, "command line"))


def _split_flags(args: list[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value`` and a bare ``--key`` (true) as a dict of YAML values."""
    flags: dict[str, Any] = {}
    while args:
        name = args.pop(0)
        if not name.startswith("--"):
            raise ConfigError(f"got {name!r} where a --field was expected; write --field value")
        key, has_value, text = name[2:].partition("=")
        if not has_value:
            text = args.pop(0) if args and not args[0].startswith("--") else "true"
        if key == "config" and text == "true":
            raise ConfigError("--config names no file; give --config an existing YAML file")
        flags[key.replace("-", "_")] = text if key == "config" else yaml_value(text)
    return flags


def overrides(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["ppo.kl_coef=0.1"]``, as ``--set`` takes it, as ``{"ppo": {"kl_coef": 0.1}}``.

    Raises:
        ConfigError: another form.
    """
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        stage, dot, field = name.partition(".")
        if not (equals and dot and field):
            raise ConfigError(
                f"--set {setting}: write --set stage.field=value, e.g. ppo.kl_coef=0.1"
            )
        found.setdefault(stage, {})[field] = yaml_value(text)
    return found


def build(
    cls: type[Any], values: dict[str, Any], source: str, others: dict[str, str] | None = None
) -> Any:
    """An instance of a config dataclass from plain values, strictly.

    ``source`` names where the values come from in messages, ``others`` where some of them do.

    Raises:
        ConfigError: unknown key (with the nearest name), wrong type, missing required key.
    """
    hints = typing.get_type_hints(cls)
    known = {_known(cls, key, f"{source}: "): value for key, value in values.items()}
    missing = [f.name for f in fields(cls) if _required(f) and f.name not in known]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)}; add `{missing[0]}: …`")
    where = {**dict.fromkeys(known, source), **(others or {})}
    checked = {key: _typed(value, hints[key], key, where[key]) for key, value in known.items()}
    empty = [f.name for f in fields(cls) if _required(f) and checked[f.name] in ({}, [], "")]
    if empty:
        raise ConfigError(f"{source}: {empty[0]} is empty; it needs at least one entry")
    return cls(**checked)


def _required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _known(cls: type[Any], key: str, where: str) -> str:
    names = [f.name for f in fields(cls)]
    if key in names:
        return key
    alias = ALIASES.get(key)
    near = [alias] if alias in names else difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    elsewhere = [s for s, c in STAGES.items() if key in {f.name for f in fields(c)}]
    hint = f"did you mean {near[0]}?" if near else "see --help-all for all fields"
    if elsewhere and alias not in names:
        hint = f"it belongs to {' and '.join(elsewhere)}"
    raise ConfigError(f"{where}{key} is not a field of the {cls.stage} stage; {hint}")


def _typed(value: Any, hint: Any, key: str, source: str) -> Any:
    """``value`` as ``hint`` wants it, or a ConfigError naming both."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        scalars_first = sorted(options, key=lambda option: describe(option).startswith("list"))
        for option in options if isinstance(value, list) else scalars_first:
            try:
                return _typed(value, option, key, source)
            except ConfigError:
                continue
        raise _type_error(value, hint, key, source)
    if origin is Literal:
        if value in options:
            return value
        raise _type_error(value, hint, key, source)
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_typed(item, options[0], key, source) for item in items]
    if origin is dict:
        if isinstance(value, str):
            value = {value: 1.0}
        if isinstance(value, list):
            value = dict.fromkeys(value, 1.0)
        if not isinstance(value, dict):
            raise _type_error(value, hint, key, source)
        return {
            _typed(k, options[0], key, source): _typed(v, options[1], key, source)
            for k, v in value.items()
        }
    return _scalar(value, hint, key, source)


def _scalar(value: Any, hint: Any, key: str, source: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-5 as a string
            number = float(value)
        except (TypeError, ValueError):
            raise _type_error(value, hint, key, source) from None
        if not math.isfinite(number):
            raise ConfigError(f"{source}: {key} is {value}; it must be a finite number")
        return number
    if hint is type(None) and value is None:
        return None
    if hint is Any or (type(value) is hint):
        return value
    raise _type_error(value, hint, key, source)


def _type_error(value: Any, hint: Any, key: str, source: str) -> ConfigError:
    return ConfigError(
        f"{source}: {key} is {value!r} ({type(value).__name__}); it must be {describe(hint)}"
    )


def describe(hint: Any) -> str:
    """A type in words for messages and help."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(str(o) for o in options)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(describe(o) for o in options)
    if origin is list:
        return f"list of {describe(options[0])}"
    if origin is dict:
        return f"{describe(options[0])}: {describe(options[1])} pairs"
    return "null" if hint is type(None) else hint.__name__


# ---------------------------------------------------------------- help


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Field -> the string right under it in the source, parents first."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        body = ast.parse(inspect.getsource(owner)).body[0]
        assert isinstance(body, ast.ClassDef)
        for this, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(this, ast.AnnAssign)
                and isinstance(this.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[this.target.id] = " ".join(str(after.value.value).split())
    return docs


def help_text(cls: type[Any], everything: bool) -> str:
    """One screen: the launch line, the fields people use first (or all), with defaults."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    lines = [
        f"{(cls.__doc__ or '').strip()}",
        "",
        f"  accelerate launch recipes/{cls.stage}.py      with the quickstart's config",
        f"  accelerate launch recipes/{cls.stage}.py --config FILE.yaml --learning_rate 1e-5",
        "",
    ]
    shown = [f for f in fields(cls) if everything or f.name in cls.first]
    for f in shown:
        default = "" if _required(f) else f" (default {_default(f)})"
        lines.append(f"  --{f.name}  {describe(hints[f.name])}{default}")
        lines.append(f"      {docs.get(f.name, '')}")
    if not everything:
        lines.append(f"\n  --help-all shows all {len(fields(cls))} fields.")
    return "\n".join(lines)


def _default(f: Any) -> Any:
    return f.default if f.default is not MISSING else f.default_factory()


# ---------------------------------------------------------------- a whole recipe


def find_recipe(name: str) -> Path:
    """Directory of a recipe: a path, or a name under recipes/configs.

    Raises:
        ConfigError: nothing there; names what is.
    """
    for candidate in (Path(name), paths.CONFIGS / name):
        if candidate.is_dir():
            return candidate
    known = sorted(p.name for p in paths.CONFIGS.iterdir() if p.is_dir())
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise ConfigError(
        f"no recipe {name!r}: neither a folder nor a name under recipes/configs; {hint}"
    )


def load_recipe(name: str, overrides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Stage -> config of every ``<stage>.yaml`` of a recipe, changed by ``{stage: {field: …}}``.

    Raises:
        ConfigError: unknown stage or file, and everything that `build` raises.
    """
    folder = find_recipe(name)
    stages = [s for s in STAGES if (folder / f"{s}.yaml").is_file()]
    stray = sorted(p.name for p in folder.glob("*.yaml") if p.stem not in STAGES)
    if stray or not stages:
        problem = f"holds {', '.join(stray)}" if stray else "holds no stage"
        raise ConfigError(f"{folder} {problem}; a recipe's files are {', '.join(STAGES)}.yaml")
    unknown = sorted(set(overrides) - set(stages))
    if unknown:
        raise ConfigError(f"--set {unknown[0]}.…: the recipe has the stages {', '.join(stages)}")
    configs = {}
    for stage in stages:
        path = folder / f"{stage}.yaml"
        laid_over = {
            _known(STAGES[stage], k, f"--set {stage}."): v
            for k, v in overrides.get(stage, {}).items()
        }
        others = dict.fromkeys(laid_over, f"--set {stage}")
        configs[stage] = build(STAGES[stage], {**read_yaml(path), **laid_over}, str(path), others)
    return configs


def to_yaml(config: Any) -> str:
    """A config as YAML that `parse` reads back."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
