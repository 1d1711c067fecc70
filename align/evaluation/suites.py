"""From what people type (a suite, a task, a YAML file) to lm-eval tasks.

``evals/suites/<suite>.yaml`` lists ``tasks`` (published data) and ``quickstart`` (the embedded
world). A task is one lm-eval YAML file; its folder holds its items or says where they are.
"""

import difflib
import logging
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from align import paths
from align.errors import AlignError, DataError, EvalError
from align.evaluation import task_checks
from align.evaluation.start import import_on_use
from align.strict_yaml import strict_yaml

World = Literal["quickstart", "published"]
_NAME = re.compile(r"^(?:task|group):[ \t]*([\w.:-]+)[ \t]*$", re.MULTILINE)


class MissingData(EvalError):
    """A task's data are not on this machine."""


class TaskFile(NamedTuple):
    """A task and the YAML file that defines it."""

    name: str
    path: Path


def resolve(names: Sequence[str], world: World, include: Path | None = None) -> list[TaskFile]:
    """The tasks of suites, task names and YAML files, each once, in order.

    Raises:
        EvalError: unknown name (with the nearest ones), or a suite without tasks for this world.
    """
    known = task_files(include)
    found: dict[str, TaskFile] = {}
    for name in names:
        for task in _tasks_of(name, world, known, include):
            found.setdefault(task.name, task)
    return list(found.values())


def task_files(include: Path | None = None) -> dict[str, Path]:
    """Task name -> YAML file, of evals/ and of the user's own folder, which wins."""
    if include is not None and not include.is_dir():
        raise EvalError(f"--include-path {include} is not a folder; give the one with task YAMLs")
    known: dict[str, Path] = {}
    for root in filter(None, (paths.EVALS, include)):
        for path in sorted(root.rglob("*.yaml")):
            if path.parent != paths.EVALS / "suites" and (name := _NAME.search(_text(path))):
                known[name[1]] = path
    return known


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"{path} can't be read: {error}") from error


def _tasks_of(
    name: str, world: World, known: dict[str, Path], include: Path | None
) -> Iterable[TaskFile]:
    """The tasks behind one word."""
    if name in known:
        return _members(TaskFile(name, known[name]), known)
    if name.endswith((".yaml", ".yml")):
        return _of_file(Path(name), world, known)
    suites = suite_files(include)
    if name in suites:
        return _of_suite(suites[name], world, known)
    everything = sorted({*known, *suites})
    near = difflib.get_close_matches(name, everything, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(everything)}"
    raise EvalError(f"no suite, task or YAML file {name!r}; {hint}")


def suite_files(include: Path | None = None) -> dict[str, Path]:
    """Suite name -> YAML file."""
    found = {path.stem: path for path in sorted((paths.EVALS / "suites").glob("*.yaml"))}
    if include is not None:
        own = (p for p in sorted(include.rglob("*.yaml")) if "tasks:" in _text(p))
        found |= {p.stem: p for p in own if not _NAME.search(_text(p))}
    return found


def _of_file(path: Path, world: World, known: dict[str, Path]) -> Iterable[TaskFile]:
    if not path.is_file():
        raise EvalError(f"no task or suite file at {path}; give an existing YAML file")
    name = _NAME.search(_text(path))
    beside = {m[1]: p for p in path.parent.glob("*.yaml") if (m := _NAME.search(_text(p)))}
    if name:
        return _members(TaskFile(name[1], path.resolve()), {**known, **beside})
    return _of_suite(path, world, {**known, **beside})


def _of_suite(path: Path, world: World, known: dict[str, Path]) -> Iterable[TaskFile]:
    """The tasks that a suite file lists for a world."""
    suite = read_suite(path)
    key = "quickstart" if world == "quickstart" else "tasks"
    names = suite.get(key) or []
    if not names:
        other = suite.get("tasks" if key == "quickstart" else "quickstart") or []
        raise EvalError(
            f"the suite {path.stem} has no {key} tasks: it can't be run on "
            f"{'a model of the embedded world' if key == 'quickstart' else 'this model'}; "
            f"it has {', '.join(other) or 'none at all'}, which can be asked for by name"
        )
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise EvalError(
            f"{path} lists {unknown[0]!r}, but there is no such task beside it or under "
            f"{paths.EVALS}; give --include-path, the folder with its YAML file"
        )
    return [m for name in names for m in _members(TaskFile(name, known[name]), known)]


def read_suite(path: Path) -> dict[str, Any]:
    """A suite file: description, tasks, quickstart.

    Raises:
        EvalError: not YAML, or other keys.
    """
    try:
        suite = strict_yaml(_text(path))
    except yaml.YAMLError as error:
        raise EvalError(f"{path} is not valid YAML: {error}") from error
    known = {"description", "tasks", "quickstart"}
    if not isinstance(suite, dict) or not set(suite) <= known:
        got = sorted(set(suite) - known) if isinstance(suite, dict) else type(suite).__name__
        raise EvalError(
            f"{path} is neither a task (no `task:`) nor a suite: it holds {got}; a suite has the "
            f"keys {', '.join(sorted(known))}"
        )
    return suite


def _members(task: TaskFile, known: dict[str, Path]) -> list[TaskFile]:
    """The task itself, or the tasks of a group file."""
    text = _text(task.path)
    if not re.search(r"^group:", text, re.MULTILINE):
        return [task]
    members = strict_yaml(text, functions=True).get("task") or []
    unknown = [name for name in members if name not in known]
    if unknown:
        raise EvalError(f"{task.path} lists {unknown[0]!r}, which is not a task here")
    return [TaskFile(name, known[name]) for name in members]


# ---------------------------------------------------------------- building a task


def build(task: TaskFile, *, chat: bool, num_fewshot: int | None) -> Any:
    """The lm-eval task of a file, for a model with or without a chat template.

    ``metadata.chat`` in the file holds what differs for a model with a chat template. As in lm-eval
    a task that fixes ``num_fewshot: 0`` keeps it.

    Raises:
        EvalError: the file can't be used; MissingData: its data are not here.
    """
    import_on_use("datasets")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _compile_templates_once()
    try:
        strict_yaml(_text(task.path), functions=True)  # load_yaml takes the last of two equal keys
        config = load_yaml(task.path)
    except (yaml.YAMLError, ValueError, ImportError, AttributeError, OSError) as error:
        raise EvalError(f"{task.path} can't be read as a task: {error}") from error
    metadata = dict(config.get("metadata") or {})
    if chat:
        config |= metadata.get("chat") or {}
    if num_fewshot is not None and config.get("num_fewshot") != 0:
        config["num_fewshot"] = num_fewshot
    config["metadata"] = {**metadata, "config_source": str(task.path)}
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    task_checks.check(config, task.path)
    made = _construct(ConfigurableTask, config, task)
    from align.evaluation.fewshot import check_shots

    check_shots(made)
    return made


def _compile_templates_once() -> None:
    """Let lm-eval's jinja environment keep its compiled templates: it makes them anew per item."""
    from lm_eval.utils import env

    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(maxsize=256)(env.from_string)


def _construct(cls: Any, config: dict[str, Any], task: TaskFile) -> Any:
    """The task object, with what its data lack told in our words."""
    source = config.get("dataset_path")
    try:
        return cls(config=config)
    except DataError as error:
        said = str(error).removeprefix(f"{task.name}: ")
        raise MissingData(f"{task.name}: {said}") from error
    except AlignError:
        raise
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise MissingData(_missing(task.name, source, first_line(error))) from error
    except IndexError as error:
        raise EvalError(f"{task.name} has no items; its test split is empty") from error
    except Exception as error:
        lacking = task_checks.lacks_split(config, error.args[0] if error.args else None)
        if isinstance(error, KeyError) and lacking:
            raise EvalError(f"{task.path}: {lacking}") from error
        raise EvalError(
            f"{task.path} can't be used as a task: {type(error).__name__}: {first_line(error)}"
        ) from error


def _missing(task: str, source: str | None, reason: str) -> str:
    """What to say of data that are not here."""
    if source in (None, "json", "csv", "text", "parquet"):  # builders that read files
        return f"{task}: a data file is missing: {reason}; correct the path in the task's file"
    return (
        f"{task} needs the Hub dataset {source}, which is not on this machine ({reason}); fetch it "
        f"with `hf download --repo-type dataset {source}`, or set ALIGN_DATA to a folder with it"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
