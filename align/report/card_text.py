"""The text of a model card, below its front matter."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import align
from align.report.tables import (
    NOT_MEASURED,
    markdown,
    metric_rows,
    notes,
    number,
    report_rows,
    results_table,
    tax_rows,
    tax_table,
)

STAGE_WORDS = {
    "sft": "supervised fine-tuning (SFT)",
    "reward": "reward modelling on preference pairs",
    "ppo": "reinforcement learning with PPO against a reward model",
}
SUBJECTS = {
    "toxicity": ("toxicity", "realtoxicityprompts", "bold"),
    "social bias": ("bias", "bbq", "crows_pairs", "stereoset", "winobias", "winogender"),
    "harmful requests and over-refusal": ("xstest", "safety", "do_not_answer"),
}
LORA = ("lora_r", "lora_alpha", "lora_layers", "load_in_4bit")
PARAMETERS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "num_train_epochs", "max_steps", "total_episodes", "num_ppo_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "dtype", "bf16",
    "reasoning", "packing", "use_peft", *LORA, "kl_coef", "kl_budget", "cliprange",
    "cliprange_value", "vf_coef", "gamma", "lam", "temperature", "seed",
)  # fmt: skip


class Ancestor(NamedTuple):
    """A checkpoint that another one was made from."""

    name: str
    """As the lineage has it: a path or Hub id."""
    title: str
    """Without the folders of the machine it was on."""
    revision: str | None
    weights_sha256: str | None
    stage: str | None
    licence: str | None
    is_local: bool


class DataSource(NamedTuple):
    """A data card that was trained on."""

    card: str
    hub_id: str | None
    rows: int | None
    sha256: str | None
    licence: str | None
    language: Any


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says."""

    folder: Path
    name: str
    stage: str
    lineage: dict[str, Any]
    is_adapter: bool
    ancestors: list[Ancestor]
    """Nearest first; the last one is the base."""
    data: list[DataSource]
    results: dict[str, dict[str, Any]]
    """Of the base and of this checkpoint."""
    tax: dict[str, Any] | None
    reward_report: dict[str, Any] | None
    command: str | None
    """What does the whole chain again, where it is a shipped recipe's."""

    @property
    def base(self) -> Ancestor:
        """The checkpoint that the chain started from."""
        return self.ancestors[-1]


def render(facts: CardFacts) -> str:
    """The whole text in Markdown."""
    sections = [
        (None, _intro(facts)),
        ("How to use it", _use(facts)),
        ("Results", _results(facts)),
        ("Alignment tax", _tax(facts)),
        ("Reward model", _reward(facts)),
        ("Limitations", _limitations(facts)),
        ("Training data", _data(facts)),
        ("Training", _training(facts)),
        ("Lineage", _lineage(facts)),
        ("Licence", _licence(facts)),
        ("How to reproduce it", _again(facts)),
    ]
    parts = [f"## {title}\n\n{text}" if title else text for title, text in sections if text]
    return "\n\n".join(parts) + "\n"


def _intro(facts: CardFacts) -> str:
    how = STAGE_WORDS.get(facts.stage, facts.stage)
    kind = "a LoRA adapter" if facts.is_adapter else "a full checkpoint"
    what = " It scores a completion with one number." if facts.stage == "reward" else ""
    return (
        f"# {facts.name}\n\n{_link(facts.base)} after {how}; {kind}.{what}\n"
        f"Written by align {align.__version__} from the checkpoint's lineage and measured results; "
        f"what was not measured says so."
    )


def _link(ancestor: Ancestor) -> str:
    if ancestor.is_local or "/" not in ancestor.name or ancestor.name.startswith((".", "/")):
        return f"`{ancestor.title}`"
    return f"[{ancestor.name}](https://huggingface.co/{ancestor.name})"


def _use(facts: CardFacts) -> str:
    if facts.stage == "reward":
        return (
            "```python\nfrom align.scoring import RewardScorer\n\n"
            'score = RewardScorer.load("PATH_OR_REPO")\n'
            'score(["a prompt"], ["a completion"])\n```'
        )
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'chat = pipeline("text-generation", "PATH_OR_REPO")\n'
        'chat([{"role": "user", "content": "Hello!"}], max_new_tokens=64)\n```'
    )


# ---------------------------------------------------------------- evidence


def _results(facts: CardFacts) -> str:
    own = [s for s in facts.results if s.startswith(facts.stage)]
    if not own:
        return f"{NOT_MEASURED.capitalize()}: no evaluation of this checkpoint was found."
    meanings = [
        f"- **{row.task}, {row.metric}**: {row.meaning}"
        for row in metric_rows(facts.results)
        if row.meaning
    ]
    warnings = [f"- {line}" for line in notes(facts.results)]
    parts = [
        "Value, 95% interval and number of items n. ↑ ↓: which way is better.",
        markdown(results_table(facts.results)),
        "\n".join(warnings),
        "\n".join(meanings),
    ]
    return "\n\n".join(part for part in parts if part)


def _tax(facts: CardFacts) -> str:
    if facts.stage == "reward":
        return ""
    table = tax_table(facts.tax)
    own = [row for row in table[1:] if row[1].endswith(f"→ {facts.stage}")]
    if not own:
        return f"{NOT_MEASURED.capitalize()}."
    sentences = [f"- {r.sentence}" for r in tax_rows(facts.tax) if r.after == facts.stage]
    return "\n\n".join(
        ["What was lost, item by item.", markdown([table[0], *own]), "\n".join(sentences)]
    )


def _reward(facts: CardFacts) -> str:
    report = facts.reward_report
    if facts.stage != "reward":
        return ""
    if not report:
        return f"{NOT_MEASURED.capitalize()}: there is no reward_report.json."
    return markdown([["on its own held-out pairs", "value", "what it means"], *report_rows(report)])


def _limitations(facts: CardFacts) -> str:
    own = {s: r for s, r in facts.results.items() if s.startswith(facts.stage)}
    tasks = {task for result in own.values() for task in result["tasks"]}
    missing = [
        f"- {subject}: {NOT_MEASURED}"
        for subject, names in SUBJECTS.items()
        if not any(name in task for task in tasks for name in names)
    ]
    missing += [f"- languages other than those of the training data: {NOT_MEASURED}"]
    missing += [f"- people's opinion of the completions: {NOT_MEASURED}"]
    return (
        "The results above hold for their items and settings. A low toxicity or bias number is "
        "the verdict of one classifier or one set of items, not a promise.\n\n" + "\n".join(missing)
    )


# ---------------------------------------------------------------- origin


def _data(facts: CardFacts) -> str:
    if not facts.data:
        return "Not known: the lineage names no data."
    table = [["data card", "rows used", "sha256 of the rows", "licence"]]
    for source in facts.data:
        name = source.card
        if source.hub_id:
            name = f"[{name}](https://huggingface.co/datasets/{source.hub_id})"
        table.append(
            [
                name,
                "not known" if source.rows is None else number(source.rows),
                f"`{source.sha256}`" if source.sha256 else "not known",
                source.licence or "unknown",
            ]
        )
    return markdown(table) + "\n\nThe cards: `align data show CARD`."


def _training(facts: CardFacts) -> str:
    config: Mapping[str, Any] = facts.lineage.get("config") or {}
    rows = [["hyper-parameter", "value"]]
    unused = (
        () if config.get("use_peft") else ("lora_r", "lora_alpha", "lora_layers", "load_in_4bit")
    )
    rows += [
        [key, str(config[key])]
        for key in PARAMETERS
        if config.get(key) is not None and key not in unused
    ]
    table = markdown(rows) if len(rows) > 1 else "Not known: the lineage has no config."
    facts_of = {
        "tokens": facts.lineage.get("tokens"),
        "wall time in seconds": facts.lineage.get("wall_seconds"),
        "hardware": _joined(facts.lineage.get("hardware")),
        "energy in kWh": facts.lineage.get("energy_kwh"),
        "versions": _joined(facts.lineage.get("versions")),
    }
    lines = [f"- {k}: {'not known' if v is None else v}" for k, v in facts_of.items()]
    return table + "\n\n" + "\n".join(lines)


def _joined(value: Any) -> str | None:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if v not in (None, [], "")) or None
    return str(value) if value else None


def _lineage(facts: CardFacts) -> str:
    lines = [f"1. **{facts.name}** (this checkpoint), weights {_sha(facts.lineage)}"]
    for place, ancestor in enumerate(facts.ancestors, start=2):
        revision = f", revision {ancestor.revision}" if ancestor.revision else ""
        how = f", {ancestor.stage}" if ancestor.stage else ""
        lines.append(
            f"{place}. {_link(ancestor)}{how}{revision}, weights {_sha(ancestor._asdict())}"
        )
    reward = facts.lineage.get("reward_model")
    if reward:
        lines.append(f"\nReward model: {_joined(reward)}")
    template = facts.lineage.get("chat_template_sha256")
    lines.append(f"\nChat template: {f'sha256 `{template}`' if template else 'none'}.")
    return "\n".join(lines)


def _sha(holder: Mapping[str, Any]) -> str:
    sha = holder.get("weights_sha256")
    return f"sha256 `{sha}`" if sha else "hash not known"


def _licence(facts: CardFacts) -> str:
    base = facts.base.licence
    data = sorted({f"{d.card}: {d.licence or 'unknown'}" for d in facts.data})
    lines = [
        f"- base `{facts.base.title}`: {base or 'unknown'}",
        *(f"- data {line}" for line in data),
    ]
    advice = (
        "The front matter names the base's licence. "
        if base
        else "The base's licence is not known, so the front matter says `unknown`. "
    )
    return (
        "\n".join(lines)
        + f"\n\n{advice}Whether the data's licences reach the weights is for you to judge."
    )


def _again(facts: CardFacts) -> str:
    import yaml

    config = facts.lineage.get("config")
    if not config:
        return "Not known: the lineage has no config."
    text = yaml.safe_dump(
        as_launched(config, facts.folder.absolute()), sort_keys=False, allow_unicode=True
    )
    version = facts.lineage.get("code_version") or "not known"
    whole = f"\n\nThe whole chain: `{facts.command}`." if facts.command else ""
    return (
        f"With align {version}, save this as `{facts.stage}.yaml`:\n\n```yaml\n{text}```\n\n"
        f"```bash\naccelerate launch recipes/{facts.stage}.py --config {facts.stage}.yaml\n```"
        f"\n\nRecipe hash: `{facts.lineage.get('recipe_sha256') or 'not known'}`.{whole}"
    )


def as_launched(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A stage's config with the paths of its run as they are typed: ``runs/NAME/STAGE``.

    Paths outside the run keep their last part only: what is around it is another machine's.
    """
    run = folder.parent

    def typed(value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith((".", "/")):
            return value
        path = Path(os.path.normpath(folder / value))
        inside = path.is_relative_to(run)
        return str("runs" / path.relative_to(run.parent)) if inside else path.name

    return {
        key: {typed(k): v for k, v in value.items()} if isinstance(value, dict) else typed(value)
        for key, value in config.items()
        if key not in ("resume", "overwrite")
    }
