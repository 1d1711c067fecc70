"""Results in the formats of others: lm-eval's JSON, and Every Eval Ever.

Both are made from results.json alone, so that any evaluation can be exported at any time.
"""

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from align.evaluation import results as files

EEE_SCHEMA = "0.3.0"  # of Every Eval Ever (2606.14516), the version that these files follow
LM_EVAL = "0.4.13"  # whose layout results_<date>.json follows
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Results = Mapping[str, Any]


def export(folder: Path, formats: list[str]) -> list[Path]:
    """Write the results of a folder in other formats, beside results.json.

    Returns:
        The files written: lm-eval/results_<date>.json, every-eval-ever/data/….
    """
    found = files.read_results(folder)
    return [path for name in dict.fromkeys(formats) for path in FORMATS[name](found, folder)]


# ---------------------------------------------------------------- lm-eval


def lm_eval(found: Results, folder: Path) -> list[Path]:
    """One file, as ``lm_eval --output_path`` writes it."""
    date = _created(found).strftime("%Y-%m-%dT%H-%M-%S")
    path = folder / "lm-eval" / f"results_{date}.json"
    files.write_json(path, as_lm_eval(found))
    return [path]


def as_lm_eval(found: Results) -> dict[str, Any]:
    """results.json in lm-eval's layout: metrics as ``name,filter``, no stderr as "N/A".

    A metric without a value is left out, as lm-eval would have no entry for it. Intervals, ideals
    and unscored items have no place there; they stay in results.json.
    """
    tasks, model, settings = found["tasks"], found["model"], found.get("settings") or {}
    versions = found.get("versions") or {}
    return {
        "results": {name: _lm_eval_task(name, entry) for name, entry in tasks.items()},
        "group_subtasks": {},
        "configs": {name: _lm_eval_config(name, entry) for name, entry in tasks.items()},
        "versions": {name: entry["version"] for name, entry in tasks.items()},
        "n-shot": {name: entry["num_fewshot"] for name, entry in tasks.items()},
        "higher_is_better": {
            name: {m: v["higher_is_better"] for m, v in entry["metrics"].items()}
            for name, entry in tasks.items()
        },
        "n-samples": {
            name: {"original": entry["n"], "effective": entry["n"] - entry["unscored"]}
            for name, entry in tasks.items()
        },
        "config": {
            "model": "align",
            "model_args": {"pretrained": model.get("name")},
            "model_num_parameters": model.get("parameters"),
            "model_sha": model.get("weights_sha256", ""),
            "limit": settings.get("limit"),
            "bootstrap_iters": 0,
            "gen_kwargs": {},
            "random_seed": settings.get("seed"),
            "fewshot_seed": settings.get("seed"),
        },
        "git_hash": None,
        "date": _created(found).timestamp(),
        "transformers_version": versions.get("transformers"),
        "lm_eval_version": versions.get("lm_eval"),
        "align_version": versions.get("align"),
        "task_hashes": {name: entry["data_sha256"] for name, entry in tasks.items()},
        "model_source": "align",
        "model_name": model.get("name"),
        "model_name_sanitized": _slug(str(model.get("name"))),
        "chat_template": None,
        "total_evaluation_time_seconds": str(sum(e.get("wall_seconds", 0) for e in tasks.values())),
    }


def _lm_eval_task(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "alias": name, "sample_len": entry["n"]}
    for metric, value in entry["metrics"].items():
        if value["value"] is not None:
            row[f"{metric},none"] = value["value"]
            stderr = value["stderr"]
            row[f"{metric}_stderr,none"] = "N/A" if stderr is None else stderr
    return row


def _lm_eval_config(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": name,
        "num_fewshot": entry["num_fewshot"],
        "metric_list": [
            {
                "metric": metric,
                "higher_is_better": value["higher_is_better"],
                "meaning": value["meaning"],
            }
            for metric, value in entry["metrics"].items()
        ],
        "metadata": {"version": entry["version"], "main": entry["main"]},
    }


# ---------------------------------------------------------------- Every Eval Ever


def every_eval_ever(found: Results, folder: Path) -> list[Path]:
    """One file a task, where that project's data store wants it: data/TASK/DEVELOPER/MODEL/…."""
    written = []
    developer, model = _model_id(found).split("/")
    for task in found["tasks"]:
        record = as_every_eval_ever(found, task)
        if record["evaluation_results"]:
            digest = hashlib.sha256(record["evaluation_id"].encode()).digest()
            name = f"{uuid.UUID(bytes=digest[:16], version=4)}.json"
            path = folder / "every-eval-ever" / "data" / task / developer / model / name
            files.write_json(path, record)
            written.append(path)
    return written


def as_every_eval_ever(found: Results, task: str) -> dict[str, Any]:
    """One task as an aggregate record of the schema.

    The schema demands that lower or higher is better. A metric with an ideal is therefore exported
    as its distance from it, under a name that says so; one without any direction is left out, and
    named in the record. Item rows are not exported: the schema demands that each is right or wrong.
    """
    entry, model = found["tasks"][task], found["model"]
    seconds = str(int(_created(found).timestamp()))
    rows = {m: _eee_result(task, m, v, entry) for m, v in entry["metrics"].items()}
    left_out = sorted(metric for metric, row in rows.items() if row is None)
    details = {"metrics_left_out": ", ".join(left_out)} if left_out else {}
    return {
        "schema_version": EEE_SCHEMA,
        "evaluation_id": f"{task}/{_model_id(found)}/{seconds}",
        "evaluation_timestamp": seconds,
        "retrieved_timestamp": seconds,
        "source_metadata": {
            "source_name": "align",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
            "additional_details": {"note": "who ran it is not recorded", **details},
        },
        "eval_library": {
            "name": "align",
            "version": (found.get("versions") or {}).get("align", "unknown"),
            "additional_details": {k: str(v) for k, v in (found.get("versions") or {}).items()},
        },
        "model_info": {
            "name": str(model.get("name")),
            "id": _model_id(found),
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                **{
                    key: str(model[key])
                    for key in ("parameters", "architecture", "weights_sha256")
                    if model.get(key) is not None
                },
            },
        },
        "evaluation_results": [row for row in rows.values() if row is not None],
    }


def _eee_result(
    task: str, metric: str, value: Mapping[str, Any], entry: Mapping[str, Any]
) -> dict[str, Any] | None:
    ideal, higher = value["ideal"], value["higher_is_better"]
    if value["value"] is None or (ideal is None and higher is None):
        return None
    name, score, meaning = metric, value["value"], value["meaning"]
    if ideal is not None:
        name, score = f"{metric}_distance_from_{ideal:g}", abs(score - ideal)
        meaning = f"distance from {ideal:g} of: {meaning}"
    uncertainty: dict[str, Any] = {"num_samples": value["n"]}
    if value["stderr"] is not None:
        uncertainty["standard_error"] = {"value": value["stderr"]}
    if value["ci95"] is not None and ideal is None:
        low, high = value["ci95"]
        uncertainty["confidence_interval"] = {"lower": low, "upper": high, "confidence_level": 0.95}
    return {
        "evaluation_result_id": f"{task}.{name}",
        "evaluation_name": task,
        "source_data": {
            "dataset_name": task,
            "source_type": "other",
            "additional_details": {
                "items_sha256": entry["data_sha256"],
                "task_version": str(entry["version"]),
            },
        },
        "metric_config": {
            "evaluation_description": meaning,
            "metric_id": f"{task}.{name}",
            "metric_name": name,
            "lower_is_better": ideal is not None or not higher,
        },
        "score_details": {
            "score": score,
            "details": {
                "value": str(value["value"]),
                "unscored_items": str(entry["unscored"]),
                "contaminated_items": str(entry["contaminated"]),
            },
            "uncertainty": uncertainty,
        },
        "generation_config": {"additional_details": {"num_fewshot": str(entry["num_fewshot"])}},
    }


def _model_id(found: Results) -> str:
    """``owner/name``: the Hub id, or ``local/…`` for a checkpoint on this machine."""
    name = str(found["model"].get("name"))
    if _HUB_ID.fullmatch(name) and not Path(name).exists():
        return name
    return f"local/{_slug('-'.join(Path(name).parts[-2:]))}"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "__", name).strip("_.") or "model"


def _created(found: Results) -> datetime:
    return datetime.strptime(found["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


FORMATS: dict[str, Callable[[Results, Path], list[Path]]] = {
    "lm-eval": lm_eval,
    "every-eval-ever": every_eval_ever,
}
