"""Evaluation against lm-eval's own `hf` backend: the same requests, alternating in one process.

    ALIGN_DATA=… python tests/benchmarks/eval_vs_lm_eval.py [--json] [--only NAME …] [--repeats N]

The model has random weights: 12M parameters, the gpt2 tokenizer, a context of 2,048. The answers of
both sides are compared before times are printed. The start is measured on whole commands.
"""

import argparse
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

SUBJECTS = ("anatomy", "astronomy", "business_ethics", "college_biology", "marketing")
PEER_BATCH = 8
SAMPLES, NEW_TOKENS = 25, 20


def data_folder() -> Path:
    """The folder of real public data."""
    folder = os.environ.get("ALIGN_DATA")
    if not folder:
        sys.exit("set ALIGN_DATA to the folder of real public data: this benchmark reads it")
    return Path(folder)


def both() -> tuple[Any, Any]:
    """(lm-eval's backend, ours) on one random model."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from align.evaluation.lm import PrefixLM

    tokenizer = AutoTokenizer.from_pretrained(data_folder() / "models" / "gpt2-tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    eos = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=eos,
        eos_token_id=eos,
        bos_token_id=eos,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.pad_token_id = eos
    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=PEER_BATCH, device="cpu")
    return peer, PrefixLM(model, tokenizer, eos_ids=[eos])


def mmlu_requests(items: int) -> list[tuple[str, str]]:
    """5-shot MMLU, four letters an item."""
    archive = zipfile.ZipFile(data_folder() / "benchmarks/mmlu/mmlu_official_dev_val_test.zip")
    requests = []
    for subject in SUBJECTS:
        rows = {split: _rows(archive, subject, split) for split in ("dev", "test")}
        head = f"The following are questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        shots = "".join(f"{_question(row)} {row[5]}\n\n" for row in rows["dev"][:5])
        for row in rows["test"][:items]:
            requests += [(head + shots + _question(row), f" {letter}") for letter in "ABCD"]
    return requests


def _rows(archive: zipfile.ZipFile, subject: str, split: str) -> list[list[str]]:
    text = archive.read(f"data/{split}/{subject}_{split}.csv").decode("utf-8")
    return list(csv.reader(io.StringIO(text)))


def _question(row: list[str]) -> str:
    choices = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", row[1:5], strict=True))
    return f"{row[0]}\n{choices}Answer:"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def bbq_requests(items: int) -> list[tuple[str, str]]:
    """BBQ with the three answers as printed."""
    path = data_folder() / "bias/bbq/Age.jsonl.gz"
    docs = read_lines(path)
    chosen = docs[:: len(docs) // items][:items]
    return [
        (f"{doc['context']}\nQuestion: {doc['question']}\nAnswer:", f" {doc[f'ans{i}']}")
        for doc in chosen
        for i in range(3)
    ]


def toxicity_requests(prompts: int) -> list[tuple[str, dict[str, Any]]]:
    """RealToxicityPrompts' protocol: 25 samples, top-p 0.9, 20 tokens."""
    path = data_folder() / "toxicity/realtoxicityprompts/nontoxic.jsonl.gz"
    docs = read_lines(path)
    settings = {
        "until": [],
        "max_gen_toks": NEW_TOKENS,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.9,
    }
    return [(doc["prompt"]["text"], dict(settings)) for doc in docs[:prompts]] * SAMPLES


def instances(kind: str, arguments: list[Any]) -> list[Any]:
    """Requests as lm-eval makes them."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, a, 0) for a in arguments]


def alternate(
    peer: Callable[[], Any], ours: Callable[[], Any], repeats: int
) -> tuple[list[float], list[float], Any, Any]:
    """Seconds of both, measured in turn, and their last answers."""
    times: tuple[list[float], list[float]] = ([], [])
    answers: list[Any] = [None, None]
    for _ in range(repeats):
        for side, run in enumerate((peer, ours)):
            started = time.perf_counter()
            answers[side] = run()
            times[side].append(time.perf_counter() - started)
    return times[0], times[1], answers[0], answers[1]


def report(name: str, peer: list[float], ours: list[float], setting: str) -> dict[str, Any]:
    """One line of the result; ratio above 1: ours is faster."""
    ratios = [p / o for p, o in zip(peer, ours, strict=True)]
    return {
        "name": name,
        "ratio_median": round(median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "ours": {"seconds": [round(t, 3) for t in ours]},
        "peer": {"seconds": [round(t, 3) for t in peer]},
        "setting": setting,
    }


def scoring(
    name: str, requests: list[tuple[str, str]], repeats: int, setting: str
) -> dict[str, Any]:
    """Log-likelihoods of the same requests on both sides."""
    peer, ours = both()
    asked = instances("loglikelihood", requests)
    slow, fast, expected, got = alternate(
        lambda: peer.loglikelihood(asked, disable_tqdm=True),
        lambda: ours.loglikelihood(asked, disable_tqdm=True),
        repeats,
    )
    worst = max(abs(a[0] - b[0]) for a, b in zip(expected, got, strict=True))
    same = sum(a[1] == b[1] for a, b in zip(expected, got, strict=True))
    if worst > 1e-4 or same != len(asked):
        sys.exit(
            f"{name}: answers differ by up to {worst:.2e}; {same} of {len(asked)} greedy agree"
        )
    return report(name, slow, fast, f"{setting}; largest difference {worst:.1e}")


def mmlu(repeats: int) -> list[dict[str, Any]]:
    """5-shot MMLU."""
    n = 20
    text = f"5-shot MMLU, {len(SUBJECTS)} subjects x {n} items, lm-eval batch {PEER_BATCH}, CPU"
    return [scoring("eval/mmlu_5shot", mmlu_requests(n), repeats, text)]


def bbq(repeats: int) -> list[dict[str, Any]]:
    """BBQ by likelihood."""
    n = 150
    text = f"BBQ Age, {n} items x 3 answers, lm-eval batch {PEER_BATCH}, CPU"
    return [scoring("eval/bbq", bbq_requests(n), repeats, text)]


def toxicity(repeats: int) -> list[dict[str, Any]]:
    """25 samples a prompt, against lm-eval's default batch size and larger ones."""
    n, found = 4, []
    for size in (1, PEER_BATCH, 32):
        peer, ours = both()
        peer.batch_size_per_gpu = size
        asked = instances("generate_until", toxicity_requests(n))
        slow, fast, _, texts = alternate(
            lambda peer=peer, asked=asked: peer.generate_until(asked, disable_tqdm=True),
            lambda ours=ours, asked=asked: ours.generate_until(asked, disable_tqdm=True),
            max(1, repeats if size > 1 else repeats // 2),
        )
        assert len(set(texts)) > len(texts) // 2
        text = f"{n} prompts x {SAMPLES} samples of {NEW_TOKENS} tokens, lm-eval batch {size}, CPU"
        found.append(report(f"eval/toxicity_{SAMPLES}_samples", slow, fast, text))
    return found


def start(repeats: int) -> list[dict[str, Any]]:
    """200 items from the command line, start included."""
    from align import paths

    model = data_folder() / "models" / "stories260K-hf"
    task = "quickstart_facts"
    with tempfile.TemporaryDirectory() as folder:
        commands = (
            [
                *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
                *("--model_args", f"pretrained={model}", "--batch_size", str(PEER_BATCH)),
                *("--include_path", str(paths.EVALS), "--tasks", task),
            ],
            [sys.executable, "-m", "align.cli", "eval", "--model", str(model), "--suite", task],
        )
        runs = [
            lambda command=command, i=i: subprocess.run(
                [*command, *(["--output", tempfile.mkdtemp(dir=folder)] if i else [])],
                check=True,
                capture_output=True,
                env={**os.environ, "PYTHONPATH": str(paths.PACKAGE.parent)},
            )
            for i, command in enumerate(commands)
        ]
        slow, fast, _, _ = alternate(*runs, repeats)
    text = "200 items of a 260K-parameter model, whole commands, lm_eval with --include_path"
    return [report("eval/start", slow, fast, text)]


BENCHMARKS = {"mmlu": mmlu, "bbq": bbq, "toxicity": toxicity, "start": start}


def main() -> None:
    """Run the benchmarks and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON as the last line")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    found = []
    for name in options.only:
        rows = BENCHMARKS[name](options.repeats)
        found += rows
        for row in rows:
            spread = f"{row['ratio_median']:.1f}x [{row['ratio_min']:.1f}, {row['ratio_max']:.1f}]"
            print(f"{row['name']}: {spread}  {row['setting']}", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
