"""A synthetic run folder, written from the contract of the files of a run. No model, no torch."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import yaml

SHA = "3f" * 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
VALUES: dict[str, dict[str, dict[str, float]]] = {
    "base": {
        "quickstart_sums": {
            "exact_match": 0.12,
            "exact_match_1step": 0.4,
            "exact_match_2step": 0.05,
        },
        "quickstart_facts": {"accuracy": 0.61},
        "quickstart_bias": {"stereotype_rate": 0.84},
        "quickstart_toxicity": {
            "toxicity_probability": 0.55,
            "expected_max_toxicity": 0.6,
            "expected_max_toxicity_at_1": 0.2,
        },
    },
    "sft": {
        "quickstart_sums": {
            "exact_match": 0.72,
            "exact_match_1step": 0.9,
            "exact_match_2step": 0.6,
        },
        "quickstart_facts": {"accuracy": 0.62},
        "quickstart_bias": {"stereotype_rate": 0.83},
        "quickstart_toxicity": {
            "toxicity_probability": 0.5,
            "expected_max_toxicity": 0.55,
            "expected_max_toxicity_at_1": 0.19,
        },
    },
    "ppo": {
        "quickstart_sums": {
            "exact_match": 0.7,
            "exact_match_1step": 0.9,
            "exact_match_2step": 0.58,
        },
        "quickstart_facts": {"accuracy": 0.6},
        "quickstart_bias": {"stereotype_rate": 0.62},
        "quickstart_toxicity": {
            "toxicity_probability": 0.08,
            "expected_max_toxicity": 0.11,
            "expected_max_toxicity_at_1": 0.02,
        },
    },
}
HIGHER = {"exact_match": True, "accuracy": True, "toxicity_probability": False}


def metric(name: str, value: float | None, n: int = 300) -> dict[str, Any]:
    """One entry of results.json; n < 2 has neither stderr nor interval."""
    known = n > 1 and value is not None
    stderr = math.sqrt(value * (1 - value) / n) if known else None
    ideal = 0.5 if name == "stereotype_rate" else None
    higher = next((h for k, h in HIGHER.items() if name.startswith(k)), None)
    if name.startswith("expected_max"):
        higher = False
    return {
        "value": value,
        "stderr": stderr,
        "ci95": [max(0.0, value - 1.96 * stderr), min(1.0, value + 1.96 * stderr)]
        if known
        else None,
        "n": n,
        "higher_is_better": higher,
        "ideal": ideal,
        "meaning": f"What {name} means, in one sentence.",
    }


def results(stage: str, n: int = 300) -> dict[str, Any]:
    """A results.json of a stage."""
    tasks = {}
    for task, metrics in VALUES[stage].items():
        tasks[task] = {
            "version": 1,
            "n": n,
            "unscored": 3 if task == "quickstart_toxicity" else 0,
            "num_fewshot": 0,
            "data_sha256": SHA,
            "contaminated": 0 if task != "quickstart_facts" else None,
            "truncated": 0,
            "main": next(iter(metrics)),
            "floors": {"random": 0.25} if task == "quickstart_facts" else {},
            "metrics": {k: metric(k, v, n) for k, v in metrics.items()},
        }
    return {
        "schema": 1,
        "model": lineage(stage),
        "created": "2026-11-22T03:00:00Z",
        "versions": {"align": "0.1.0"},
        "settings": {"toxicity_classifier": {"name": "quickstart", "sha256": SHA}},
        "tasks": tasks,
        "missing": [],
    }


def lineage(stage: str) -> dict[str, Any]:
    """A lineage.json of a stage."""
    parents = {"sft": "quickstart-base", "reward": "../sft", "ppo": "../sft"}
    if stage == "base":
        return {"stage": "base", "name": "quickstart-base", "weights_sha256": SHA}
    return {
        "stage": stage,
        "parent": {
            "path": parents[stage],
            "revision": None,
            "weights_sha256": SHA,
            "stage": None if stage == "sft" else "sft",
        },
        "data": [{"card": f"quickstart_{stage}", "rows": 8000, "sha256": SHA}],
        "config": {
            "model_name_or_path": parents[stage],
            "learning_rate": 0.0005,
            "seed": 0,
            "use_peft": False,
        }
        | ({"kl_coef": 0.05, "kl_budget": 8.0} if stage == "ppo" else {}),
        "recipe_sha256": SHA,
        "code_version": "0.1.0",
        "seed": 0,
        "chat_template_sha256": SHA,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": {"processor": "x86_64", "cpus": 2, "gpus": [], "processes": 1},
        "created": "2026-11-22T03:00:00Z",
        "wall_seconds": 61.5,
        "energy_kwh": None,
        "tokens": 812345,
        "weights_sha256": SHA,
    }


TAX: dict[str, Any] = {
    "schema": 1,
    "pairs": {
        "base->sft": {
            "quickstart_facts": {
                "delta": 0.01, "stderr": 0.03, "ci95": [-0.05, 0.07], "p_holm": 0.74,
                "mde80": 0.084, "n": 200, "format_delta": None, "capability_delta": None,
                "verdict": "none",
            },
        },
        "sft->ppo": {
            "quickstart_sums": {
                "delta": -0.05, "stderr": 0.012, "ci95": [-0.07, -0.03], "p_holm": 0.0002,
                "mde80": 0.034, "n": 300, "format_delta": -0.02, "capability_delta": -0.03,
                "verdict": "tax",
            },
            "quickstart_facts": {
                "delta": -0.02, "stderr": 0.05, "ci95": [-0.12, 0.08], "p_holm": 0.7,
                "mde80": 0.14, "n": 200, "format_delta": None, "capability_delta": None,
                "verdict": "unclear",
            },
        },
    },
    "pareto": [
        {"name": "base", "lost": 0.0, "lost_ci95": None, "reward": None, "reward_ci95": None,
         "gain": None, "gain_ci95": None, "prompts": 0},
        {"name": "sft", "lost": 0.0, "lost_ci95": [-0.02, 0.02], "reward": 0.1,
         "reward_ci95": [0.0, 0.2], "gain": None, "gain_ci95": None, "prompts": 128},
        {"name": "ppo", "lost": 0.04, "lost_ci95": [0.01, 0.07], "reward": 1.9,
         "reward_ci95": [1.8, 2.0], "gain": 1.8, "gain_ci95": [1.7, 1.9], "prompts": 128},
    ],
}  # fmt: skip

REWARD = {
    "accuracy": {"value": 0.93, "ci95": [0.89, 0.96], "n": 300},
    "by_kind": {
        "sums": {"value": 0.81, "ci95": [0.7, 0.89], "n": 60},
        "dialogue": {"value": 0.99, "ci95": [0.96, 1.0], "n": 140},
    },
    "calibration": {
        "ece": 0.031,
        "bins": [
            {"confidence": 0.55, "accuracy": 0.52, "n": 20},
            {"confidence": 0.8, "accuracy": 0.84, "n": 80},
            {"confidence": 0.97, "accuracy": 0.96, "n": 200},
        ],
    },
    "length_only": {"rule": "shorter", "value": 0.55, "ci95": [0.5, 0.6], "n": 300},
    "sensitivity": {
        "eos_mean_abs": 0.8,
        "padding_max_abs": 1e-6,
        "batching_max_abs": 2e-6,
        "n": 64,
    },
}


def curve(stage: str) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl."""
    if stage != "ppo":
        return [
            {"step": s, "loss": 3 * math.exp(-s / 50) + 0.4, "learning_rate": 1e-3 - s * 2e-6}
            for s in range(0, 400, 10)
        ]
    return [
        {
            "step": s,
            "rollout": s,
            "score": 2 - 2 * math.exp(-s / 15),
            "kl": 0.1 * s,
            "entropy": 1.5 - 0.01 * s,
        }
        for s in range(0, 60, 3)
    ] + [
        {"step": s, "rollout": s, "eval/score": 1.9 - 1.8 * math.exp(-s / 15), "eval/kl": 0.1 * s}
        for s in (0, 20, 40, 57)
    ]


def item_rows(task: str) -> list[dict[str, Any]]:
    """Rows of an items file; one carries HTML, which a report must not execute."""
    return [
        {
            "task": task,
            "id": f"{i:016x}",
            "cluster": f"{i}",
            "prompt": "Tom had 5 apples. How many? <script>alert(1)</script>",
            "completion": text if task == "quickstart_sums" else [text] * 8,
            "gold": str(5 + i),
            "scores": {"exact_match": 1.0, "flexible": None},
            "unscored_reason": None,
            "meta": {},
        }
        for i in range(6)
        for text in [f"5 + {i} = {5 + i}. The answer is {5 + i}."]
    ]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_checkpoint(folder: Path, config: dict[str, Any] = CONFIG) -> None:
    """config.json and a model.safetensors that is a true header with zeros behind it."""
    write_json(folder / "config.json", config)
    h, i, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = h * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": [v, h], "model.norm.weight": [h]}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, rows in (("q", h), ("k", kv), ("v", kv), ("o", h)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = [rows, h]
        shapes[f"{at}.mlp.gate_proj.weight"] = [i, h]
        shapes[f"{at}.mlp.up_proj.weight"] = [i, h]
        shapes[f"{at}.mlp.down_proj.weight"] = [h, i]
        shapes[f"{at}.input_layernorm.weight"] = [h]
        shapes[f"{at}.post_attention_layernorm.weight"] = [h]
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(offset)
    (folder / "model.safetensors").write_bytes(data)


def write_run(folder: Path) -> Path:
    """A finished run: three trained stages, three evaluations, tax."""
    for stage in ("sft", "reward", "ppo"):
        write_checkpoint(folder / stage)
        write_json(folder / stage / "lineage.json", lineage(stage))
        write_jsonl(folder / stage / "metrics.jsonl", curve(stage))
    write_json(folder / "reward" / "reward_report.json", REWARD)
    for stage in VALUES:
        write_json(folder / "eval" / stage / "results.json", results(stage))
        for task in ("quickstart_sums", "quickstart_toxicity"):
            write_jsonl(folder / "eval" / stage / "items" / f"{task}.jsonl", item_rows(task))
    write_json(folder / "tax.json", TAX)
    recipe = {s: lineage(s)["config"] for s in ("sft", "reward", "ppo")}
    rows = [{"rollout": r, "prompt": "Help me!", "completion": "Gladly.", "score": 1.9, "kl": 5.1}
            for r in (20, 57)]  # fmt: skip
    write_jsonl(folder / "ppo" / "samples.jsonl", rows)
    content = {"name": "my-own", "align": "0.1.0", "stages": recipe}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder
