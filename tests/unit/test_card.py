"""Model cards: front matter, text, what is not known, and the Hub on 127.0.0.1."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from align import card, paths
from align.errors import CheckpointError
from align.parsing import load_recipe
from tests import fake_run, hub


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return fake_run.write_run(tmp_path / "quickstart")


def written(checkpoint: Path) -> tuple[dict[str, Any], str]:
    loaded = ModelCard.load(card.write(checkpoint))
    return loaded.data.to_dict(), loaded.text


def test_the_front_matter_has_what_the_hub_reads(run_dir: Path) -> None:
    data, _ = written(run_dir / "ppo")
    assert data["base_model"] == "quickstart-base"
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["datasets"] == ["quickstart_ppo"]
    assert {"align", "ppo"} <= set(data["tags"])


def test_results_stand_in_the_index_with_n_and_interval(run_dir: Path) -> None:
    data, _ = written(run_dir / "ppo")
    results = data["model-index"][0]["results"]
    bias = next(r for r in results if r["dataset"]["name"] == "quickstart_bias")
    metric = bias["metrics"][0]
    assert metric["value"] == 0.62
    assert metric["args"]["n"] == 300 and metric["args"]["num_fewshot"] == 0
    low, high = metric["args"]["ci95"]
    assert low < 0.62 < high


def test_zero_shot_and_few_shot_stay_apart(run_dir: Path) -> None:
    few = fake_run.results("sft")
    few["tasks"]["quickstart_sums"]["num_fewshot"] = 8
    fake_run.write_json(run_dir / "eval" / "sft_fewshot" / "results.json", few)
    data, _ = written(run_dir / "sft")
    sums = [r for r in data["model-index"][0]["results"] if r["dataset"]["name"].endswith("sums")]
    names = {m["name"] for r in sums for m in r["metrics"]}
    assert {"exact_match (0-shot)", "exact_match (8-shot)"} <= names


def test_an_unscored_metric_is_left_out_of_the_index_and_said_in_the_text(run_dir: Path) -> None:
    results = fake_run.results("ppo")
    results["tasks"]["quickstart_bias"]["metrics"]["stereotype_rate"]["value"] = None
    fake_run.write_json(run_dir / "eval" / "ppo" / "results.json", results)
    data, text = written(run_dir / "ppo")
    named = [r["dataset"]["name"] for r in data["model-index"][0]["results"]]
    assert "quickstart_bias" not in named
    assert "unscored (n=300)" in text


def test_the_text_tells_tax_data_lineage_and_how_to_reproduce(run_dir: Path) -> None:
    _, text = written(run_dir / "ppo")
    for wanted in (
        "a tax, +0.050 [+0.030, +0.070]",
        f"| quickstart_ppo | 8,000 | `{fake_run.SHA}` |",
        "harmful requests and over-refusal: not measured",
        "accelerate launch recipes/ppo.py --config ppo.yaml",
        "2. `sft`, sft, weights",
        "3. `quickstart-base`",
        "| kl_budget | 8.0 |",
        "energy in kWh: not known",
    ):
        assert wanted in text, wanted


def test_a_checkpoint_alone_says_not_measured(tmp_path: Path) -> None:
    fake_run.write_json(tmp_path / "sft" / "lineage.json", fake_run.lineage("sft"))
    data, text = written(tmp_path / "sft")
    assert "model-index" not in data
    assert "Not measured: no evaluation of this checkpoint was found." in text


def test_a_reward_model_is_a_classifier_with_its_report(run_dir: Path) -> None:
    data, text = written(run_dir / "reward")
    assert data["pipeline_tag"] == "text-classification"
    assert "| accuracy | 0.930 [0.890, 0.960] n=300 |" in text
    assert "Alignment tax" not in text


def test_an_adapter_is_called_one(run_dir: Path) -> None:
    fake_run.write_json(run_dir / "sft" / "adapter_config.json", {"base_model_name_or_path": "x"})
    data, _ = written(run_dir / "sft")
    assert data["library_name"] == "peft"
    assert data["base_model_relation"] == "adapter"


def test_a_hub_base_is_linked_and_its_licence_unknown(tmp_path: Path) -> None:
    lineage = fake_run.lineage("sft")
    lineage["parent"] |= {"path": "someone/base-1b", "revision": "abc"}
    fake_run.write_json(tmp_path / "sft" / "lineage.json", lineage)
    data, text = written(tmp_path / "sft")
    assert data["base_model"] == "someone/base-1b"
    assert data["license"] == "unknown"
    assert "[someone/base-1b](https://huggingface.co/someone/base-1b), revision abc" in text
    assert "The base's licence is not known" in text


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("mit", {"license": "mit"}),
        ("My Own Licence", {"license": "other", "license_name": "my-own-licence"}),
    ],
)
def test_the_licence_is_the_one_on_the_bases_card(
    tmp_path: Path, licence: str, expected: dict[str, str]
) -> None:
    base = tmp_path / "models" / "tiny"
    base.mkdir(parents=True)
    (base / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")
    lineage = fake_run.lineage("sft")
    lineage["parent"]["path"] = str(base)
    fake_run.write_json(tmp_path / "sft" / "lineage.json", lineage)
    data, text = written(tmp_path / "sft")
    assert expected.items() <= data.items()
    assert data["base_model"] == "tiny"  # never the folders of this machine
    assert str(tmp_path) not in text.split("## How to reproduce")[0]


def test_the_base_inside_the_package_has_the_packages_licence(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = run_dir / "package" / "quickstart" / "base"
    fake_run.write_checkpoint(inside)
    monkeypatch.setattr(paths, "PACKAGE", run_dir / "package")
    monkeypatch.setattr(paths, "QUICKSTART_BASE", inside)
    data, _ = written(run_dir / "ppo")
    assert data["license"] == "apache-2.0" and data["base_model"] == "quickstart-base"


def test_data_cards_bring_hub_id_language_and_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = (
        "license: mit\nlanguage: [en]\nalign:\n  hub:\n    id: someone/pairs\n    split: train\n"
    )
    (tmp_path / "quickstart_sft.md").write_text(f"---\n{front}---\n", encoding="utf-8")
    monkeypatch.setattr(paths, "DATA_CARDS", tmp_path)
    fake_run.write_json(tmp_path / "sft" / "lineage.json", fake_run.lineage("sft"))
    data, text = written(tmp_path / "sft")
    assert data["datasets"] == ["someone/pairs"] and data["language"] == ["en"]
    assert "[quickstart_sft](https://huggingface.co/datasets/someone/pairs)" in text
    assert "- data quickstart_sft: mit" in text


def test_registered_benchmarks_get_their_own_file(run_dir: Path) -> None:
    results = fake_run.results("sft")
    task = results["tasks"].pop("quickstart_sums")
    results["tasks"]["gsm8k"] = {**task, "num_fewshot": 8}
    fake_run.write_json(run_dir / "eval" / "sft" / "results.json", results)
    card.write(run_dir / "sft")
    text = (run_dir / "sft" / ".eval_results" / "gsm8k.yaml").read_text()
    assert "id: openai/gsm8k" in text and "value: 72.0" in text
    assert "8-shot, n=300, stderr 2.59" in text


def test_a_card_tells_no_folders_of_the_machine_it_was_made_on(run_dir: Path) -> None:
    lineage = fake_run.lineage("ppo")
    lineage["config"] |= {
        "output_dir": ".",
        "model_name_or_path": "../sft",
        "reward_model": str(run_dir / "reward"),
        "chat_template": "/home/somebody/my.jinja",
        "datasets": {"/home/somebody/pairs.jsonl": 1.0},
    }
    fake_run.write_json(run_dir / "ppo" / "lineage.json", lineage)
    _, text = written(run_dir / "ppo")
    assert str(run_dir) not in text and "somebody" not in text
    assert "output_dir: runs/quickstart/ppo" in text
    assert "model_name_or_path: runs/quickstart/sft" in text
    assert "reward_model: runs/quickstart/reward" in text
    assert "chat_template: my.jinja" in text


def test_a_parent_that_did_not_come_along_is_named_without_a_link(run_dir: Path) -> None:
    shutil.move(run_dir / "sft", run_dir / "elsewhere")
    data, text = written(run_dir / "ppo")
    assert "`sft`" in text and "huggingface.co/.." not in text
    assert data["base_model"] == "sft"


def test_the_command_of_a_shipped_recipe_stands_on_the_card(run_dir: Path) -> None:
    assert "The whole chain" not in written(run_dir / "sft")[1]  # a recipe of one's own
    stages = {s: asdict(c) for s, c in load_recipe("quickstart", {}).items()}
    content = yaml.safe_dump({"name": "quickstart", "stages": stages})
    (run_dir / "recipe.yaml").write_text(content, encoding="utf-8")
    assert "The whole chain: `align run quickstart`." in written(run_dir / "sft")[1]


# ---------------------------------------------------------------- refusals


def test_no_lineage_no_card(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no lineage\.json"):
        card.write(tmp_path)


GOOD = "base_model: a/b\nlicense: mit\nlibrary_name: x\npipeline_tag: text-generation\ntags: [x]\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no front matter", "no YAML front matter"),
        ("---\nlicense: mit\n---\n", "base_model is missing"),
        (f"---\n{GOOD.replace('mit', 'My Licence')}---\n", "is not an identifier"),
        (f"---\n{GOOD.replace('a/b', '/tmp/x y')}---\n", "not a Hub identifier"),
        (f"---\n{GOOD.replace('text-generation', 'poetry')}---\n", "pipeline_tag is 'poetry'"),
        (
            f"---\n{GOOD}model-index:\n- name: m\n  results:\n  - task: {{type: t}}\n"
            "    dataset: {type: d, name: d}\n    metrics: [{type: a, value: .nan}]\n---\n",
            "a is nan, not a finite number",
        ),
    ],
)
def test_the_offline_check_finds_what_the_hub_would_refuse(text: str, problem: str) -> None:
    assert any(problem in found for found in card.check(text)), card.check(text)


def test_a_good_card_passes_the_check() -> None:
    assert card.check(f"---\n{GOOD}---\n\ntext") == []


# ---------------------------------------------------------------- pushing

PUSH = """
import sys
from align import card, paths
from align.errors import run_main
run_main(lambda: print(card.push(sys.argv[1], sys.argv[2])))
"""


def push(folder: Path, repo: str, url: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Push in a process of its own: huggingface_hub reads its environment at import."""
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "ALIGN_VERBOSE")}
    env |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", PUSH, str(folder), repo],
        capture_output=True, text=True, env=env, timeout=60, check=False,
    )  # fmt: skip


def test_a_checkpoint_is_pushed_whole_and_private(run_dir: Path, tmp_path: Path) -> None:
    folder = run_dir / "ppo"
    card.write(folder)
    fake_run.write_json(folder / "checkpoint-40" / "state.json", {"must": "stay"})
    with hub.running() as server:
        done = push(folder, "me/model", server.url, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{server.url}/me/model"
        assert server.created[0]["visibility"] == "private"
        assert server.files["README.md"] == (folder / "README.md").read_bytes()
        weights = (folder / "model.safetensors").read_bytes()
        assert server.files["model.safetensors"] == weights
        assert not any(name.startswith("checkpoint-") for name in server.files)


def test_what_the_hub_refuses_is_one_line(run_dir: Path, tmp_path: Path) -> None:
    card.write(run_dir / "ppo")
    with hub.running() as server:
        server.refuse = 401
        done = push(run_dir / "ppo", "me/model", server.url, tmp_path / "home")
    assert done.returncode == 2
    assert re.fullmatch(r"error: could not push .* to me/model: .*hf auth login.*\n", done.stderr)


def test_pushing_needs_a_card_and_a_name(run_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no README\.md; write it first"):
        card.push(run_dir / "ppo", "me/model")
    card.write(run_dir / "ppo")
    with pytest.raises(CheckpointError, match="'not a name' is not a repository name"):
        card.push(run_dir / "ppo", "not a name")
