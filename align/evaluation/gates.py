"""Gates: what a number must be, stated beforehand, so that a script can stop on it.

tax<1.0pp                                     mean tax of the last checkpoint, in points
tax.quickstart_sums<2pp                       the tax on one task
quickstart_toxicity.toxicity_probability<0.2
quickstart_sums>=60%                          a task's main metric
"""

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from align.errors import EvalError, GateError

_FORM = re.compile(r"\s*([\w.\-]+)\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*(pp|%)?\s*")
_HOLDS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Gate(NamedTuple):
    """``name`` compared with ``bound`` (a share, not a percentage)."""

    text: str
    name: str
    comparison: str
    bound: float


def parse_gate(text: str) -> Gate:
    """A gate from its text.

    Raises:
        EvalError: not ``name<number`` with an optional pp or %.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise EvalError(
            f"{text!r} is not a gate; write NAME<NUMBER with <, <=, > or >=, as in tax<1.0pp or "
            "quickstart_sums.exact_match>=60%"
        )
    name, comparison, bound, unit = found.groups()
    return Gate(text.strip(), name, comparison, float(bound) / (100 if unit else 1))


def check_askable(gates: Sequence[Gate], tasks: Sequence[str], baselines: int) -> None:
    """Refuse gates on what will not be measured, before anything is.

    Raises:
        EvalError: a gate on a tax without a baseline, or on a task that isn't evaluated.
    """
    for gate in gates:
        first, _, rest = gate.name.partition(".")
        if first == "tax" and not baselines:
            raise EvalError(
                f"the gate {gate.text} needs a tax, but none is measured; give --baseline, the "
                "model to compare with"
            )
        asked = rest if first == "tax" else first
        if asked and asked not in tasks:
            raise EvalError(
                f"the gate {gate.text} speaks of {asked!r}; measured will be: {', '.join(tasks)}"
            )


def check_gates(
    results: Mapping[str, Any], tax: Mapping[str, Any] | None, gates: Sequence[Gate]
) -> list[str]:
    """One line for each gate that holds.

    Args:
        results: a results.json.
        tax: a tax.json, needed by gates on ``tax``.
        gates: what must hold.

    Raises:
        EvalError: a gate on something that was not measured.
        GateError: one or more don't hold.
    """
    held: list[str] = []
    broken: list[str] = []
    for gate in gates:
        for where, value in _values(gate, results, tax):
            holds = _HOLDS[gate.comparison](value, gate.bound)
            (held if holds else broken).append(f"{gate.text}: {where} is {value:.4f}")
    if broken:
        raise GateError(f"{len(broken)} gate(s) missed: {'; '.join(broken)}")
    return held


def _values(
    gate: Gate, results: Mapping[str, Any], tax: Mapping[str, Any] | None
) -> Iterator[tuple[str, float]]:
    """(what, value) of everything that a gate speaks of."""
    if gate.name == "tax" or gate.name.startswith("tax."):
        yield from _taxes(gate, tax)
        return
    task, _, name = gate.name.partition(".")
    entry = results["tasks"].get(task)
    if entry is None:
        raise EvalError(
            f"the gate {gate.text} speaks of {task!r}; measured: {', '.join(results['tasks'])}"
        )
    name = name or entry["main"]
    metric = entry["metrics"].get(name)
    if metric is None or metric["value"] is None:
        raise EvalError(
            f"the gate {gate.text} speaks of {task}.{name}, which was not measured; measured: "
            f"{', '.join(entry['metrics'])}"
        )
    yield f"{task}.{name}", metric["value"]


def _taxes(gate: Gate, tax: Mapping[str, Any] | None) -> Iterator[tuple[str, float]]:
    """The last checkpoint's tax against each earlier one: of one task, or the mean over tasks."""
    tax = tax or {"stages": [""], "pairs": {}, "overall": {}}
    task = gate.name.partition(".")[2]
    found = {
        pair: tax["pairs"][pair].get(task) if task else tax["overall"].get(pair)
        for pair in tax["pairs"]
        if pair.endswith(f"->{tax['stages'][-1]}")
    }
    if not found:
        raise EvalError(
            f"the gate {gate.text} needs a tax, but none was measured; give --baseline, the model "
            "to compare with"
        )
    for pair, entry in found.items():
        if entry is None or entry.get("tax") is None:
            raise EvalError(
                f"the gate {gate.text}: no tax was measured for {task or 'any task'} from "
                f"{pair.replace('->', ' to ')}"
            )
        yield f"the tax from {pair.replace('->', ' to ')}", entry["tax"]
