"""What a task's YAML file says, checked before lm-eval reads it: it drops what it doesn't know."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from align.data.cards import nearest
from align.errors import EvalError

METRIC_KEYS = ("metric", "aggregation", "higher_is_better", "ideal", "meaning", "kind")
LM_EVAL_METRIC_KEYS = (
    "hf_evaluate",
    "ignore_case",
    "ignore_numbers",
    "ignore_punctuation",
    "multi_label",
    "regexes_to_ignore",
)
METADATA_KEYS = (
    *("version", "main", "cluster", "id", "meta", "chat", "classifier", "detector", "items_of"),
    *("whole", "scorer", "card", "fewshot_card", "model", "groups"),
)
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
NEAR = 0.75  # likeness from which another word is taken for a misspelled key


def check(config: Mapping[str, Any], path: Path) -> None:
    """Refuse keys that nobody reads, and metrics that can't be computed.

    Raises:
        EvalError: with the nearest known word.
    """
    from lm_eval.config.task import TaskConfig

    known = [f.name for f in fields(TaskConfig)]
    metadata = config.get("metadata") or {}
    _all_known(config, known, f"{path}:", "a key of an lm-eval task")
    _all_known(metadata.get("chat") or {}, known, f"{path}: metadata.chat:", "a key of a task")
    for key in metadata:  # others are the file's own: lm-eval has no list of them
        near = difflib.get_close_matches(str(key), METADATA_KEYS, n=1, cutoff=NEAR)
        if near and near[0] != key:
            raise EvalError(f"{path}: metadata: {key} is read by nobody; did you mean {near[0]}?")
    for spec in config.get("metric_list") or ():
        _check_metric(spec, path)
    _check_main(config, path)
    if not (config.get("dataset_path") or config.get("custom_dataset")):
        raise EvalError(f"{path} names no data; give it a dataset_path or a custom_dataset")


def lacks_split(config: Mapping[str, Any], name: object) -> str | None:
    """Which key of a task asks for a split of that name, in words; None: none does."""
    asking = [key for key in SPLITS if config.get(key) == name]
    return f"{asking[0]} is {name!r}, but its data have no such split" if asking else None


def _check_metric(spec: Any, path: Path) -> None:
    from lm_eval.api.registry import aggregation_registry, get_aggregation

    if not isinstance(spec, Mapping) or "metric" not in spec:
        raise EvalError(f"{path}: metric_list has {spec!r}; each entry needs a key `metric`")
    where = f"{path}: metric_list: {spec['metric']}:"
    if not spec.get("hf_evaluate"):
        _all_known(spec, (*METRIC_KEYS, *LM_EVAL_METRIC_KEYS), where, "a key of a metric")
    said = spec.get("aggregation")
    if isinstance(said, str) and get_aggregation(said) is None:
        raise EvalError(
            f"{where} no aggregation {said!r}; {nearest(said, list(aggregation_registry))}"
        )


def _check_main(config: Mapping[str, Any], path: Path) -> None:
    """``main`` is a metric of the list, one behind a filter, or one that the scorer makes."""
    metadata = config.get("metadata") or {}
    main, names = metadata.get("main"), [str(m["metric"]) for m in config.get("metric_list") or ()]
    if main is None or not names or metadata.get("scorer"):
        return
    if not any(main == name or str(main).startswith(f"{name}_") for name in names):
        raise EvalError(
            f"{path}: metadata.main is {main!r}, which is not in metric_list; "
            f"{nearest(str(main), names)}"
        )


def _all_known(given: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    known = list(known)
    unknown = sorted(str(key) for key in given if key not in known)
    if unknown:
        raise EvalError(f"{where} {unknown[0]} is not {what}; {nearest(unknown[0], known)}")
