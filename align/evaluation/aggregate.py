"""From rows of item scores to metrics with intervals, and to the floors below them."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from align.errors import EvalError
from align.evaluation.results import Metric
from align.evaluation.stats import mean_with_ci

Rows = Sequence[Mapping[str, Any]]
RESAMPLES = 1000
MOST_REPEATS, MOST_FLOOR = 20, 1000  # draws of a random scorer; items of a floor
SHARES = ("acc", "acc_norm", "accuracy")  # main metrics of which floors_of is the floor


def metrics_of(task: Any, rows: Rows) -> dict[str, Metric]:
    """All metrics of a task, in the order of its metric_list, then those of its own scorer."""
    specs = {str(spec["metric"]): spec for spec in task.config.metric_list or ()}
    seen = dict.fromkeys(name for row in rows for name in row["scores"])
    order = [name for name in specs if name in seen] + [n for n in seen if n not in specs]
    found = {
        name: _metric(name, specs.get(name) or _base_spec(name, specs), task, rows)
        for name in order
    }
    dotted = (task.config.metadata or {}).get("scorer")
    if dotted:
        found |= scorer(dotted)(rows)
    if not found:
        found = {name: _unmeasured(spec) for name, spec in specs.items()}
    return found


def _base_spec(name: str, specs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of ``exact_match`` for ``exact_match_strict-match``, a metric behind a filter."""
    bases = [base for base in specs if name.startswith(f"{base}_")]
    return specs[max(bases, key=len)] if bases else {}


def scorer(dotted: str) -> Callable[[Rows], dict[str, Metric]]:
    """The function behind a dotted name.

    Raises:
        EvalError: there is none.
    """
    module, _, name = dotted.rpartition(".")
    try:
        function: Callable[[Rows], dict[str, Metric]] = getattr(
            importlib.import_module(module), name
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise EvalError(f"metadata.scorer {dotted!r} can't be imported: {error}") from error
    return function


def _metric(name: str, spec: Mapping[str, Any], task: Any, rows: Rows) -> Metric:
    """One metric over the rows to which it applies."""
    rows = [row for row in rows if name in row["scores"]]
    values = [row["scores"][name] for row in rows]
    clusters = [row["cluster"] for row in rows]
    aggregation = task.aggregation().get(str(spec.get("metric", name)))
    direction = spec.get("higher_is_better")
    if "higher_is_better" not in spec:
        direction = task.higher_is_better().get(str(spec.get("metric", name)))
    meaning = str(spec.get("meaning") or f"mean of {name} over the items")
    if aggregation is None or getattr(aggregation, "__name__", "") == "mean":
        scored = [value if isinstance(value, float) else None for value in values]
        value, stderr, ci95, n = mean_with_ci(scored, clusters, kind=spec.get("kind", "auto"))[:4]
    else:
        value, stderr, ci95, n = _aggregated(aggregation, values, clusters)
        meaning = str(spec.get("meaning") or f"{aggregation.__name__} over the items")
    return Metric(value, stderr, ci95, n, direction, spec.get("ideal"), meaning)


def _aggregated(
    function: Callable[[list[Any]], Any], values: list[Any], clusters: list[str]
) -> tuple[float | None, float | None, tuple[float, float] | None, int]:
    """A number that is no mean of items, with a bootstrap over clusters (seeded)."""
    groups: dict[str, list[Any]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        if value is not None:
            groups.setdefault(cluster, []).append(value)
    scored = [v for members in groups.values() for v in members]
    if not scored:
        return None, None, None, 0
    value = float(function(scored))
    if len(groups) < 2:
        return value, None, None, len(scored)
    from scipy import stats as scipy_stats

    members = list(groups.values())
    drawn = scipy_stats.bootstrap(
        (np.arange(len(members)),),
        lambda places: float(function([v for place in places for v in members[place]])),
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = drawn.confidence_interval
    return value, float(drawn.standard_error), (float(low), float(high)), len(scored)


def _unmeasured(spec: Mapping[str, Any]) -> Metric:
    """A metric without a single scored item."""
    direction = spec.get("higher_is_better")
    return Metric(None, None, None, 0, direction, spec.get("ideal"), str(spec.get("meaning", "")))


def floors_of(
    task: Any, rows: Rows, choices: Sequence[Sequence[str]], seed: int
) -> dict[str, float]:
    """What scorers without knowledge reach on a multiple-choice task.

    random: any choice, equally likely. longest_answer: the longest choice, ties shared.
    permuted_labels: the model's own choices against the labels of other items.
    """
    usable = [
        (row, options)
        for row, options in zip(rows, choices, strict=True)
        if isinstance(row["gold"], int)
        and 0 <= row["gold"] < len(options)
        and len(row.get("loglikelihoods", ())) == len(options)
    ]
    if not usable or len({row["gold"] for row, _ in usable}) < 2:
        return {}  # labels that never change say nothing about artefacts
    golds = [row["gold"] for row, _ in usable]
    picks = [max(range(len(o)), key=row["loglikelihoods"].__getitem__) for row, o in usable]
    longest = [_longest_share(options, row["gold"]) for row, options in usable]
    shuffled = Random(f"labels-{seed}").sample(golds, len(golds))
    return {
        "random": sum(1 / len(options) for _, options in usable) / len(usable),
        "longest_answer": sum(longest) / len(usable),
        "permuted_labels": sum(p == g for p, g in zip(picks, shuffled, strict=True)) / len(usable),
    }


def floors_by_scorer(
    task: Any, docs: Sequence[Any], rows: Rows, choices: Sequence[Sequence[str]], seed: int
) -> dict[str, float]:
    """What scorers without knowledge reach in a task's main metric, through its own scorer.

    random: likelihoods at random. longest_answer: the longer the likelier. permuted_labels: the
    model's own likelihoods, shuffled among the choices of each item.
    """
    usable = [
        (doc, row, [len(option) for option in options])
        for doc, row, options in zip(docs, rows, choices, strict=True)
        if len(row.get("loglikelihoods", ())) == len(options) > 1 and not row["unscored_reason"]
    ]
    usable = _some_clusters(usable)
    main = str((task.config.metadata or {}).get("main"))
    rng = Random(f"floors-{seed}")

    def value(likelihoods: Callable[[Mapping[str, Any], list[int]], list[float]]) -> float | None:
        made = [
            {**row, "scores": _rescored(task, doc, likelihoods(row, lengths))}
            for doc, row, lengths in usable
        ]
        return metrics_of(task, made)[main].value

    def at_random(_: Mapping[str, Any], lengths: list[int]) -> list[float]:
        return [-rng.expovariate(1 / 20) for _ in lengths]

    repeats = max(1, min(MOST_REPEATS, 2000 // len(usable))) if usable else 0
    drawn = [value(at_random) for _ in range(repeats)]
    known = [v for v in drawn if v is not None]
    if not known or len(known) < len(drawn):
        return {}
    found = {
        "random": sum(known) / len(known),
        "longest_answer": value(lambda _, lengths: [float(n) for n in lengths]),
        "permuted_labels": value(
            lambda row, _: rng.sample(row["loglikelihoods"], len(row["loglikelihoods"]))
        ),
    }
    return {name: number for name, number in found.items() if number is not None}


def _some_clusters(usable: list[Any]) -> list[Any]:
    """Whole clusters of about MOST_FLOOR items: a floor needs no more."""
    clusters = dict.fromkeys(row["cluster"] for _, row, _ in usable)
    order = {cluster: number for number, cluster in enumerate(clusters)}
    step = 1 + len(usable) // MOST_FLOOR
    return [entry for entry in usable if order[entry[1]["cluster"]] % step == 0]


def _rescored(task: Any, doc: Any, likelihoods: Sequence[float]) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):  # lm-eval divides by empty choices' length
        scores = task.process_results(doc, [(value, False) for value in likelihoods])
    return {name: value if value == value else None for name, value in scores.items()}


def _longest_share(options: Sequence[str], gold: int) -> float:
    lengths = [len(option) for option in options]
    return 1 / lengths.count(max(lengths)) if lengths[gold] == max(lengths) else 0.0
