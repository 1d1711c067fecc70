"""A checkpoint's model card: README.md from its lineage, its results and its data cards.

Nothing on it is typed by hand: a number comes from results.json with its interval and n, a licence
from the base's and the data's own cards, and what isn't known or wasn't measured says so.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align import paths
from align.errors import CheckpointError
from align.report import card_text
from align.report.card_text import Ancestor, CardFacts, DataSource
from align.report.command import run_again
from align.report.load import Run, load_run, read_json

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
PIPELINES = ("text-generation", "text-classification")
# Benchmarks that the Hub shows on a model's page: task here -> (dataset, task id, metric).
REGISTERED = {"gsm8k": ("openai/gsm8k", "gsm8k", "exact_match")}


def write(checkpoint_dir: Path | str, run_dir: Path | str | None = None) -> Path:
    """Write README.md (and .eval_results/ where it applies) into a checkpoint directory.

    ``run_dir`` defaults to the parent folder, which is where a run keeps its checkpoints.

    Raises:
        CheckpointError: no lineage.json there, or a card that the Hub would refuse.
        EvalError: a file of the run that can't be read.
    """
    from huggingface_hub import ModelCard

    facts = collect(Path(checkpoint_dir), Path(run_dir) if run_dir else None)
    data = metadata(facts)
    text = f"---\n{data.to_yaml()}\n---\n\n{card_text.render(facts)}"
    problems = check(text)
    if problems:
        raise CheckpointError(
            f"the model card of {checkpoint_dir} would be refused by the Hub: {problems[0]}"
        )
    target = facts.folder / "README.md"
    ModelCard(text).save(target)
    _write_registered(facts)
    return target


def push(checkpoint_dir: Path | str, repo: str) -> str:
    """Upload a checkpoint with its card; a repository that isn't there is made, private.

    Returns:
        The repository's address.

    Raises:
        CheckpointError: no card yet, not a repository name, or the Hub said no.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    folder = Path(checkpoint_dir)
    if not (folder / "README.md").is_file():
        raise CheckpointError(f"{folder} has no README.md; write it first: align card {folder}")
    if not REPO_ID.fullmatch(repo):
        raise CheckpointError(f"{repo!r} is not a repository name; write OWNER/NAME")
    try:
        url = HfApi().create_repo(repo, exist_ok=True, private=True)
        HfApi().upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            ignore_patterns=["checkpoint-*", "*.tmp", "*.tmp/*", "state/*", "wandb/*"],
            commit_message="Upload checkpoint and model card",
        )
    except (HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"could not push {folder} to {repo}: {str(error).splitlines()[0]}; check the network, "
            "HF_HUB_OFFLINE and that you are logged in (hf auth login)"
        ) from error
    return str(url)


# ---------------------------------------------------------------- facts


def collect(folder: Path, run_dir: Path | None = None) -> CardFacts:
    """Everything that a card says, read from the checkpoint, its run and its ancestors.

    Raises:
        CheckpointError: not a checkpoint with a lineage.
    """
    folder = folder.resolve()
    lineage = read_json(folder / "lineage.json")
    if lineage is None:
        raise CheckpointError(
            f"{folder} has no lineage.json, so what it was made from is not known; "
            "a card is written for checkpoints that align's recipes trained"
        )
    run = _run_of(run_dir or folder.parent)
    stage = str(lineage.get("stage") or folder.name)
    chain = ancestry(folder, lineage)
    return CardFacts(
        folder=folder,
        name=f"{chain[-1].title}-{stage}",
        stage=stage,
        lineage=lineage,
        is_adapter=(folder / "adapter_config.json").is_file(),
        ancestors=chain,
        data=[data_source(row) for row in lineage.get("data") or []],
        results=_results_of(run, stage),
        tax=run.tax if run else None,
        reward_report=read_json(folder / "reward_report.json"),
        command=run_again(run.recipe) if run else None,
    )


def _run_of(folder: Path) -> Run | None:
    """The run around a checkpoint, None for a checkpoint that stands alone."""
    found = (folder / "recipe.yaml").is_file() or any(folder.glob("eval/*/results.json"))
    return load_run(folder) if found else None


def _results_of(run: Run | None, stage: str) -> dict[str, dict[str, Any]]:
    """Results of the base and of this stage, with their variants (``base_fewshot``)."""
    results = run.results if run else {}
    return {s: r for s, r in results.items() if s.startswith(("base", stage))}


def ancestry(folder: Path, lineage: Mapping[str, Any]) -> list[Ancestor]:
    """The parents of a checkpoint, nearest first; the last one is the base."""
    chain: list[Ancestor] = []
    while (parent := lineage.get("parent")) and len(chain) < 20:
        parent = parent if isinstance(parent, dict) else {"path": parent}
        name = str(parent.get("path") or parent.get("name") or "unknown")
        where = _local(name, folder)
        lineage = (read_json(where / "lineage.json") if where else None) or {}
        licence = _front_matter(where / "README.md").get("license") if where else None
        if where and where.is_relative_to(paths.PACKAGE):
            licence = licence or "apache-2.0"  # the package's own
        chain.append(
            Ancestor(
                name=name,
                title=_title(name, where),
                revision=parent.get("revision"),
                weights_sha256=parent.get("weights_sha256"),
                stage=parent.get("stage") or lineage.get("stage"),
                licence=_one(licence),
                is_local=where is not None,
            )
        )
        folder = where or folder
    return chain or [Ancestor("unknown", "unknown", None, None, None, None, False)]


def _title(name: str, where: Path | None) -> str:
    if where is None:
        return Path(name).name if name.startswith((".", "/")) else name
    return name if name == "quickstart-base" else where.name


def _local(name: str, child: Path) -> Path | None:
    """The directory of a parent: shipped, as seen from its child, or beside it after a move."""
    if name == "quickstart-base":
        return paths.QUICKSTART_BASE if paths.QUICKSTART_BASE.is_dir() else None
    for candidate in (child / name, Path(name), child.parent / Path(name).name):
        if candidate.is_dir():
            return candidate.resolve()
    return None


def data_source(row: Mapping[str, Any]) -> DataSource:
    """A data row of lineage.json with what its data card adds."""
    name = str(row.get("card", "unknown"))
    path = Path(name) if name.endswith(".md") else paths.data_card(name)
    front = _front_matter(path)
    source = front.get("align") or {}
    hub = source.get("hub") or source.get("hub_id") or source.get("path")
    if isinstance(hub, dict):
        hub = hub.get("id")
    return DataSource(
        card=Path(name).stem,
        hub_id=hub if isinstance(hub, str) and REPO_ID.fullmatch(hub) and "/" in hub else None,
        rows=row.get("rows"),
        sha256=row.get("sha256"),
        licence=_one(front.get("license")),
        language=front.get("language"),
    )


def _front_matter(path: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load

    return (metadata_load(path) or {}) if path.is_file() else {}


def _one(licence: Any) -> str | None:
    """A licence as one text; cards may hold a list, and *unknown* is not a licence."""
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return None if licence in (None, "", "unknown") else str(licence)


# ---------------------------------------------------------------- metadata


def metadata(facts: CardFacts) -> Any:
    """The card's front matter as huggingface_hub has it (`ModelCardData`)."""
    from huggingface_hub import ModelCardData

    base = facts.base
    reward = facts.stage == "reward"
    return ModelCardData(
        model_name=facts.name,
        base_model=_repo_id(base.title),
        base_model_relation="adapter" if facts.is_adapter else "finetune",
        datasets=[d.hub_id or _repo_id(d.card) for d in facts.data] or None,
        language=_languages(facts.data),
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="text-classification" if reward else "text-generation",
        tags=_tags(facts),
        eval_results=eval_results(facts) or None,
        **_licence(base.licence),
    )


def _repo_id(name: str) -> str:
    """A name that the Hub accepts as an identifier."""
    return name if REPO_ID.fullmatch(name) else re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _languages(data: Iterable[DataSource]) -> list[str] | None:
    found: list[str] = []
    for source in data:
        languages = source.language if isinstance(source.language, list) else [source.language]
        found += [str(language) for language in languages if language]
    return list(dict.fromkeys(found)) or None


def _tags(facts: CardFacts) -> list[str]:
    names = {"sft": "sft", "reward": "reward-model", "ppo": "ppo"}
    tags = ["align", names.get(facts.stage, facts.stage)]
    return tags + (["lora"] if facts.is_adapter else [])


def _licence(licence: str | None) -> dict[str, Any]:
    """The base's licence; one that the Hub has no name for is ``other`` with its own name."""
    if licence is None:
        return {"license": "unknown"}
    if LICENCE_ID.fullmatch(licence):
        return {"license": licence}
    return {"license": "other", "license_name": _repo_id(licence.lower())}


def eval_results(facts: CardFacts) -> list[Any]:
    """One entry a measured metric; shots, n, stderr and interval travel in ``metric_args``.

    The Hub merges entries of the same task and dataset, so that only these tell a 0-shot from an
    8-shot result. A metric without a value is left out: YAML's ``.nan`` breaks readers.
    """
    from huggingface_hub import EvalResult

    reward = facts.stage == "reward"
    entries = []
    for task, entry, metric, value in _measured(facts):
        shots = entry.get("num_fewshot")
        keep = ("n", "stderr", "ci95")
        entries.append(
            EvalResult(
                task_type="text-classification" if reward else "text-generation",
                dataset_type=_repo_id(REGISTERED[task][0] if task in REGISTERED else task),
                dataset_name=task,
                metric_type=metric,
                metric_name=metric if shots is None else f"{metric} ({shots}-shot)",
                metric_value=value["value"],
                metric_args={
                    "num_fewshot": shots,
                    **{k: value[k] for k in keep if value.get(k) is not None},
                    "unscored": entry.get("unscored", 0),
                },
            )
        )
    return entries


def _measured(facts: CardFacts) -> Iterable[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    """(task, its entry, metric, its entry) of this checkpoint's finite values."""
    for stage, result in facts.results.items():
        if stage.startswith(facts.stage):
            for task, entry in result["tasks"].items():
                for metric, value in entry["metrics"].items():
                    if value.get("value") is not None and math.isfinite(value["value"]):
                        yield task, entry, metric, value


def _write_registered(facts: CardFacts) -> None:
    """``.eval_results/<task>.yaml`` for benchmarks that the Hub has registered."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    for task, entry, metric, value in _measured(facts):
        dataset, task_id, wanted = REGISTERED.get(task, ("", "", ""))
        if metric != wanted:
            continue
        notes = f"{entry.get('num_fewshot', 0)}-shot, n={value.get('n')}, stderr "
        notes += "not known" if value.get("stderr") is None else f"{100 * value['stderr']:.2f}"
        rows = eval_result_entries_to_yaml(
            [EvalResultEntry(dataset, task_id, round(100 * value["value"], 2), notes=notes)]
        )
        target = facts.folder / ".eval_results" / f"{task}.yaml"
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump(rows, sort_keys=False), encoding="utf-8")


# ---------------------------------------------------------------- validation without network


def check(text: str) -> list[str]:
    """What the Hub would refuse or misread in a card, in words; empty when all is well."""
    import yaml

    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        return ["there is no YAML front matter between two lines of ---"]
    data = yaml.safe_load(match[1])
    if not isinstance(data, dict):
        return ["the front matter is not a mapping"]
    return [*_check_fields(data), *_check_index(data.get("model-index", []))]


def _check_fields(data: Mapping[str, Any]) -> Iterable[str]:
    for key in ("base_model", "license", "library_name", "pipeline_tag", "tags"):
        if not data.get(key):
            yield f"{key} is missing"
    if data.get("pipeline_tag") not in PIPELINES:
        yield f"pipeline_tag is {data.get('pipeline_tag')!r}, not one of {', '.join(PIPELINES)}"
    if not LICENCE_ID.fullmatch(str(data.get("license"))):
        yield f"license {data.get('license')!r} is not an identifier"
    if data.get("license") == "other" and not data.get("license_name"):
        yield "license is other, but license_name is missing"
    for key in ("base_model", "datasets"):
        names = data.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            if not REPO_ID.fullmatch(name):
                yield f"{key} holds {name!r}, which is not a Hub identifier"


def _check_index(index: list[dict[str, Any]]) -> Iterable[str]:
    for model in index:
        if not model.get("name"):
            yield "model-index has an entry without a name"
        for result in model.get("results", []):
            where = f"model-index, {result.get('dataset', {}).get('name')}"
            if not result.get("task", {}).get("type"):
                yield f"{where}: task.type is missing"
            if not {"type", "name"} <= result.get("dataset", {}).keys():
                yield f"{where}: dataset.type or dataset.name is missing"
            for metric in result.get("metrics", []):
                value = metric.get("value")
                if not isinstance(value, int | float) or not math.isfinite(value):
                    yield f"{where}: {metric.get('type')} is {value!r}, not a finite number"
