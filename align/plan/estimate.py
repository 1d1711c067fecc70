"""The plan of a stage and of a whole recipe: memory, tokens, time, cost."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align import paths
from align.parsing import load_recipe
from align.plan.memory import memory, trainable
from align.plan.shape import Shape, needs_config, shape_of
from align.report.load import read_json


@dataclass(kw_only=True)
class Plan:
    """What one stage needs; None is *not known*."""

    stage: str
    model: str
    parameters: int | None = None
    trainable: int | None = None
    memory: dict[str, float] = field(default_factory=dict)
    """Part -> bytes that are held the whole time."""
    transient: dict[str, float] = field(default_factory=dict)
    """Phase -> bytes that it needs on top; phases do not overlap."""
    tokens: int | None = None
    """Upper bound: every sequence as long as max_length."""
    flops: float | None = None
    seconds: float | None = None
    cost: float | None = None
    notes: list[str] = field(default_factory=list)
    """Where numbers come from, and what is needed for those that are not known."""

    @property
    def peak(self) -> float | None:
        """Bytes at the fullest moment."""
        if not self.memory:
            return None
        return sum(self.memory.values()) + max(self.transient.values(), default=0.0)


def plan_recipe(
    recipe: str,
    overrides: dict[str, dict[str, Any]] | None = None,
    *,
    tokens_per_second: float | None = None,
    price_per_hour: float | None = None,
) -> list[Plan]:
    """The plan of each training stage of a recipe, in the order of the chain.

    A stage that starts from an earlier stage's output has that stage's shape, so that a chain can
    be planned before any of it has run.

    Raises:
        ConfigError: the recipe is wrong.
    """
    shapes: dict[str, Shape | None] = {}
    roots: dict[str, str] = {}  # output folder -> the checkpoint that its chain starts from
    plans = []
    for stage, config in load_recipe(recipe, overrides or {}).items():
        if stage == "eval":
            continue
        name = config.model_name_or_path
        shape = shapes[name] if name in shapes else shape_of(name, config.model_revision)
        shapes[config.output_dir] = shape
        root = roots[config.output_dir] = roots.get(name, name)
        plans.append(
            estimate(
                config,
                shape,
                root=root,
                tokens_per_second=tokens_per_second,
                price_per_hour=price_per_hour,
            )
        )
    return plans


def estimate(
    config: Any,
    shape: Shape | None,
    *,
    root: str | None = None,
    tokens_per_second: float | None = None,
    price_per_hour: float | None = None,
) -> Plan:
    """Memory, tokens, time and cost of one stage; ``root``: where an unknown shape would be found.

    Compute is 6 floating-point operations a weight and trained token, 2 a weight and token that is
    only read (Kaplan 2020, 2001.08361, section 2.1).
    """
    plan = Plan(stage=config.stage, model=config.model_name_or_path)
    if shape is None:
        plan.notes.append(needs_config(root or config.model_name_or_path))
    else:
        plan.parameters = shape.parameters()
        plan.trainable = trainable(config, shape)
        plan.memory, plan.transient = memory(config, shape)
    _count_tokens(plan, config)
    speed = tokens_per_second or _measured_speed(plan, config)
    if plan.tokens is not None and plan.parameters is not None:
        plan.flops = 6.0 * plan.parameters * plan.tokens
    if plan.tokens is not None and speed:
        plan.seconds = plan.tokens / speed
    elif plan.tokens is not None:
        plan.notes.append("time: give --tokens-per-second, or run once; then it is measured")
    if plan.seconds is not None and price_per_hour is not None:
        plan.cost = plan.seconds / 3600 * price_per_hour
    return plan


# ---------------------------------------------------------------- tokens, time


def _count_tokens(plan: Plan, config: Any) -> None:
    """Fill in the most tokens that the stage can train on."""
    if config.stage == "ppo":
        plan.tokens = config.total_episodes * config.num_ppo_epochs * config.max_length
        plan.notes.append(
            f"tokens: at most {config.total_episodes:,} episodes of {config.max_length} tokens, "
            f"each trained on {config.num_ppo_epochs} times"
        )
        return
    sides = 2 if config.stage == "reward" else 1  # chosen and rejected
    if config.max_steps > 0:
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        sequences = config.max_steps * batch
        plan.notes.append(f"tokens: at most, {config.max_steps} steps of {batch} on each process")
    else:
        rows = _rows(config, plan)
        if rows is None:
            return
        sequences = math.ceil(rows * (1 - config.eval_fraction) * config.num_train_epochs)
        plan.notes.append(f"tokens: at most, from {rows:,} records")
    plan.tokens = sequences * sides * config.max_length


def _rows(config: Any, plan: Plan) -> int | None:
    """Records of the mixture, where every card or the limit says; weights only lower it."""
    total = 0
    for name in config.datasets:
        rows = config.dataset_limit or _card_rows(name)
        if rows is None:
            plan.notes.append(
                f"tokens: not known, the card {name} does not say how many rows it has; "
                "set max_steps or dataset_limit"
            )
            return None
        total += rows
    return total


def _card_rows(name: str) -> int | None:
    path = Path(name) if name.endswith(".md") else paths.data_card(name)
    match = (
        re.match(r"---\n(.*?)\n---", path.read_text("utf-8"), re.DOTALL) if path.is_file() else None
    )
    front = yaml.safe_load(match[1]) if match else {}
    block = front.get("align") or {}
    rows = (block.get("quickstart") or {}).get("rows") or block.get("rows")
    return int(rows) if rows else None


def _measured_speed(plan: Plan, config: Any) -> float | None:
    """Tokens a second of the last run of this stage in the same folder."""
    lineage = read_json(Path(config.output_dir) / "lineage.json") or {}
    tokens, seconds = lineage.get("tokens"), lineage.get("wall_seconds")
    if not tokens or not seconds:
        return None
    speed = float(tokens) / float(seconds)
    plan.notes.append(f"time: at {speed:,.0f} tokens/s, measured by the run in {config.output_dir}")
    return speed
