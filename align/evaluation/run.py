"""`evaluate`: a checkpoint and suites in, results.json and items/<task>.jsonl out.

1. Look at the checkpoint. 2. Find and build the tasks: what is missing is said before any weight
is loaded. 3. Load the model. 4. Ask, score and aggregate task by task; answers are kept as they
come, so a killed evaluation goes on where it was. 5. Write.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from align import checkpoint
from align.errors import EvalError, Interrupted, RunError
from align.evaluation import (
    aggregate,
    items,
    judges,
    processes,
    results,
    subject,
    suites,
    toxicity,
)
from align.evaluation.ancestry import Ancestry, contaminated
from align.evaluation.look import look

MOST_UNSCORED = 0.05
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "lm_eval",
    "detoxify",
    "numpy",
    "scipy",
)
Log = Callable[[str], None]


class Missing(NamedTuple):
    """A task whose data are not here."""

    task: str
    reason: str


def to_stderr(line: str) -> None:
    """The default log."""
    print(line, file=sys.stderr, flush=True)


def _to_nobody(line: str) -> None:
    """The log of a process that is not the first."""


def evaluate(
    model: str,
    suites_or_tasks: Sequence[str],
    *,
    output: Path | None = None,
    limit: int | None = None,
    limits: Mapping[str, int] | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    batch_size: int | str = "auto",
    toxicity_model: str = "quickstart",
    allow_missing: bool = False,
    include_path: Path | None = None,
    log: Log = to_stderr,
) -> dict[str, Any]:
    """Evaluate a checkpoint; the content of results.json.

    ``limits`` holds limits of single tasks, which win over ``limit``.

    Raises:
        CheckpointError, EvalError: the user's input.
        RunError: more than 5% of a task's items are unscored (the results are written).
    """
    limits = dict(limits or {})
    for most in (limit, *limits.values()):
        if most is not None and most < 1:
            raise EvalError(f"--limit is {most}; it must be at least 1 item")
    # 1.
    info, known, files = look(model, suites_or_tasks, include_path)
    _check_limits(limits, [file.name for file in files])
    team = processes.join()
    log = log if team.is_first else _to_nobody
    # 2.
    chat = info.has_chat_template or info.num_labels is not None
    tasks, missing = _build(files, chat, num_fewshot, allow_missing)
    _check_kind(model, info, tasks)
    for gone in missing:
        log(f"MISSING {gone.task}: {gone.reason}")
    # 3.
    cache = output / ".cache" if output is not None else None
    judged = subject.load(model, info, cache=cache, seed=seed, batch_size=batch_size, team=team)
    classifier = _classifier(tasks, toxicity_model) if team.is_first else None
    judged_by = judges.of_tasks(tasks, classifier, cache) if team.is_first else {}
    # 4.
    entries = {}
    with _interruptible(output), ExitStack() as stack:
        stack.callback(judged.responses.close)
        if classifier is not None:
            stack.enter_context(toxicity.using(classifier))
        for name, task in tasks.items():
            started = time.monotonic()
            cut = _truncated(judged)
            asked = items.prepare(task, judged, limits.get(name, limit), seed, chat)
            items.respond(asked, judged)
            if not team.is_first:
                continue
            entries[name] = _score_task(task, asked, output, seed, known)
            entries[name]["truncated"] = _truncated(judged) - cut
            entries[name]["judges"] = judges.brief(judged_by.get(name, {}))
            entries[name]["wall_seconds"] = round(time.monotonic() - started, 2)
            log(f"{name}: {entries[name]['n']} items in {entries[name]['wall_seconds']:.1f} s")
    # 5.
    found = {
        "schema": results.SCHEMA,
        "model": _lineage(model, info),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": checkpoint.lineage.versions(PACKAGES),
        "settings": {
            "seed": seed,
            "limit": limit,
            "limits": limits,
            "chat_template": chat,
            "toxicity_classifier": (
                toxicity.describe(classifier) | {"error": judges.by_data(judged_by)}
                if classifier
                else None
            ),
            "refusal_detector": judges.by_data(judged_by, "refusal detector"),
        },
        "tasks": entries,
        "missing": [gone._asdict() for gone in missing],
        "warnings": _warnings(classifier, tasks),
    }
    found = team.from_first(results.clean(found))
    entries = found["tasks"]
    if output is not None and team.is_first:
        results.write_json(output / "results.json", found)
    _check_unscored(entries)
    return found


def _check_limits(limits: Mapping[str, int], tasks: Sequence[str]) -> None:
    """A limit of a task that isn't evaluated would be read by nobody.

    Raises:
        EvalError: there is one.
    """
    for name in limits:
        if name not in tasks:
            near = get_close_matches(name, tasks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the tasks are {', '.join(tasks)}"
            raise EvalError(f"--limit {name}={limits[name]}: {name} is not evaluated; {hint}")


@contextmanager
def _interruptible(output: Path | None) -> Iterator[None]:
    """Ctrl-C says what was kept.

    Raises:
        Interrupted: with that.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if output is None:
            raise
        raise Interrupted(
            f"the answers so far are kept in {output}; the same command goes on from there"
        ) from error


def _build(
    files: Sequence[suites.TaskFile], chat: bool, num_fewshot: int | None, allow_missing: bool
) -> tuple[dict[str, Any], list[Missing]]:
    """The tasks, and those whose data are not here."""
    tasks, missing = {}, []
    for file in files:
        try:
            tasks[file.name] = suites.build(file, chat=chat, num_fewshot=num_fewshot)
        except suites.MissingData as error:
            if not allow_missing:
                raise
            missing.append(Missing(file.name, str(error)))
    return tasks, missing


def _check_kind(model: str, info: Any, tasks: dict[str, Any]) -> None:
    """A reward model can be asked to choose, and nothing else; masked models have their tasks."""
    for name, task in tasks.items():
        wanted = (task.config.metadata or {}).get("model", "causal")
        if (wanted == "masked") != (info.kind == "masked"):
            raise EvalError(
                f"{name} is for {wanted} language models, and {model} is {info.architecture}; "
                + ("evaluate it with crows_pairs_mlm" if wanted != "masked" else "use crows_pairs")
            )
    if info.num_labels is None:
        return
    for name, task in tasks.items():
        if not name.endswith("preferences"):
            raise EvalError(
                f"{model} is a reward model, which has no answers to {name}; evaluate it with "
                "--suite reward"
            )
        assert task.OUTPUT_TYPE == "multiple_choice"


def _classifier(tasks: dict[str, Any], name: str) -> toxicity.Classifier | None:
    """The toxicity classifier, where a task asks for one."""
    wanted = any((t.config.metadata or {}).get("classifier") for t in tasks.values())
    return toxicity.load_classifier(name) if wanted else None


def _warnings(classifier: toxicity.Classifier | None, tasks: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers."""
    foreign = [
        name
        for name, task in tasks.items()
        if (task.config.metadata or {}).get("classifier") and not name.startswith("quickstart_")
    ]
    if classifier is None or classifier.name != "quickstart" or not foreign:
        return []
    return [
        "the embedded toxicity classifier knows the embedded world only; what it says of other "
        f"texts ({', '.join(foreign)}) means nothing: give --toxicity-model original, unbiased, "
        "multilingual or a Hub id"
    ]


def _truncated(judged: subject.Subject) -> int:
    """Prompts that were cut to the model's context so far."""
    return judged.lm.truncated if isinstance(judged, subject.LanguageModel) else 0


def _score_task(
    task: Any, asked: Sequence[items.Item], output: Path | None, seed: int, known: Ancestry
) -> dict[str, Any]:
    """Score and aggregate one task whose items are answered."""
    if (task.config.metadata or {}).get("classifier"):
        texts = [t for item in asked for i in item.instances for t in i.resps]
        toxicity.current().scores(texts)  # in one batch; the scorer finds them known
    rows = items.rows(task, asked)
    if output is not None:
        results.write_jsonl(items.item_file(output, task.task_name), rows)
    metrics = aggregate.metrics_of(task, rows)
    floors, why_none = _floors(task, asked, rows, seed)
    unscored = [row["unscored_reason"] for row in rows if row["unscored_reason"] is not None]
    return {
        "version": (task.config.metadata or {}).get("version", task.VERSION),
        "n": len(rows),
        "unscored": len(unscored),
        "unscored_reasons": {reason: unscored.count(reason) for reason in sorted(set(unscored))},
        "num_fewshot": task.config.num_fewshot or 0,
        "data_sha256": items.data_sha256(task.eval_docs),
        "contaminated": contaminated(_items_of(task), known, {row["id"] for row in rows}),
        "truncated": 0,
        "main": (task.config.metadata or {}).get("main") or next(iter(metrics), None),
        "metrics": {name: results.as_json(metric) for name, metric in metrics.items()},
        "floors": {name: results.number(value) for name, value in floors.items()},
        "floors_note": why_none,
    }


def _items_of(task: Any) -> str:
    """The task whose items these are: several tasks may ask the same ones."""
    return str((task.config.metadata or {}).get("items_of") or task.task_name)


def _floors(
    task: Any, asked: Sequence[items.Item], rows: list[Any], seed: int
) -> tuple[dict[str, float], str | None]:
    """Floors of a task with choices, and why there are none for others."""
    if task.OUTPUT_TYPE != "multiple_choice":
        how = "generated" if task.OUTPUT_TYPE == "generate_until" else "predicted"
        return {}, f"none: the answers are {how}, there are no choices to draw from"
    choices = [task.doc_to_choice(item.doc) if item.instances else [] for item in asked]
    if max(map(len, choices), default=0) < 2:
        return {}, "none: one completion an item, there are no choices to draw from"
    if task.multiple_input:  # lm-eval has the right choice where the prompt is elsewhere
        known = [{**r, "gold": task.doc_to_text(i.doc)} for r, i in zip(rows, asked, strict=True)]
        return _said(aggregate.floors_of(task, known, choices, seed))
    main = (task.config.metadata or {}).get("main")
    found = {}
    if main in (None, *aggregate.SHARES):
        found = aggregate.floors_of(task, rows, choices, seed)
    if not found and main is not None:
        docs = [item.doc for item in asked]
        found = aggregate.floors_by_scorer(task, docs, rows, choices, seed)
    return _said(found)


def _said(floors: dict[str, float]) -> tuple[dict[str, float], str | None]:
    return floors, None if floors else "none: too few items, or the same choice is always right"


def _lineage(model: str, info: Any) -> dict[str, Any]:
    """What results.json says of the model: its lineage, and what can be seen without one."""
    return {
        **checkpoint.read_lineage(info.path),
        "name": model,
        "kind": info.kind,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "weights_sha256": checkpoint.weights_sha256(info.path),
    }


def _check_unscored(entries: dict[str, Any]) -> None:
    """Too many unscored items: the numbers stand, but the run failed."""
    for name, entry in entries.items():
        if entry["unscored"] > MOST_UNSCORED * entry["n"]:
            reason = max(entry["unscored_reasons"], key=entry["unscored_reasons"].get)
            raise RunError(
                f"{entry['unscored']} of {entry['n']} items of {name} are unscored (more than "
                f"{MOST_UNSCORED:.0%}), mostly: {reason}; see items/{name}.jsonl"
            )
