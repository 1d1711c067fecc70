"""Users' mistakes through the real programs: one line, the exit code, nothing half-written.

What a module finds alone is tested beside it; here a person types a command. Mistakes that can be
seen before weights are loaded must be said in two seconds, so these tests are fast.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable]
ALIGN = [sys.executable, "-m", "align.cli"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
TWO = [*LAUNCH, "--config_file", str(ROOT / "recipes/accelerate/cpu.yaml")]
TWO += ["--main_process_port", "0"]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """Checkpoints, records and configs that are right."""
    from align import checkpoint
    from align.config import RewardStage

    folder = tmp_path_factory.mktemp("shelf")
    tiny.checkpoint(folder / "base")
    tiny.checkpoint(folder / "sft", template=tiny.PLAIN)
    stage = RewardStage(
        model_name_or_path=str(folder / "sft"),
        datasets={"x": 1.0},
        output_dir="x",
        learning_rate=1.0,
        per_device_train_batch_size=1,
    )
    tokenizer = checkpoint.load_tokenizer(str(folder / "sft"))
    model = checkpoint.new_reward_model(stage, tokenizer)
    checkpoint.write_model(folder / "reward", model, tokenizer)
    write(folder / "sums.jsonl", [{"question": r["prompt"], "answer": "1"} for r in tiny.sums(60)])
    pairs = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in tiny.pairs(60)]
    write(folder / "pairs.jsonl", pairs)
    common = "per_device_train_batch_size: 4\nlearning_rate: 1.0e-3\nmax_length: 128\n"
    common += "output_dir: out\n"
    epochs = "num_train_epochs: 200\nsave_steps: 5\n"
    configs = {
        "sft": f"model_name_or_path: base\nchat_template: plain\ndatasets: sums.jsonl\n{epochs}",
        "reward": f"model_name_or_path: sft\ndatasets: pairs.jsonl\n{epochs}",
        "ppo": "model_name_or_path: sft\nreward_model: reward\ndatasets: sums.jsonl\n"
        "total_episodes: 4000\nmax_completion_length: 8\nsave_steps: 1\neval_prompts: 2\n",
    }
    for name, text in configs.items():
        (folder / f"{name}.yaml").write_text(text + common)
    return folder


@pytest.fixture
def world(shelf, tmp_path) -> Path:
    """A copy of the shelf to spoil."""
    shutil.copytree(shelf, tmp_path / "w")
    return tmp_path / "w"


def environment(**more: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("ALIGN_DATA", "WANDB_MODE")}
    return {**env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def run(world: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=world, env=environment(), text=True, capture_output=True, check=False
    )


def recipe(stage: str, *flags: str) -> list[str]:
    return [str(ROOT / "recipes" / f"{stage}.py"), "--config", f"{stage}.yaml", *flags]


def tree(world: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(world.rglob("*")) if p.is_file()}


def refused(world: Path, command: list[str], *words: str) -> None:
    """Exit 2, one line of error that holds all words, no traceback, no file touched."""
    before, began = tree(world), time.monotonic()
    done = run(world, command)
    took = time.monotonic() - began
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and done.stderr.splitlines()[-1] == errors[0], done.stderr
    for word in words:
        assert word in errors[0]
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert tree(world) == before and not (world / "out").exists(), "nothing half-written"
    assert took < 10, "far above the two seconds that it takes on a quiet machine"


# ---------------------------------------------------------------- keys and values


def test_keys_and_values(world):
    refused(world, RUN + recipe("sft", "--lr", "3"), "--lr is not", "did you mean learning_rate?")
    refused(world, RUN + recipe("reward", "--kl_coef", "3"), "it belongs to ppo")
    text = (world / "ppo.yaml").read_text()
    (world / "ppo.yaml").write_text(text.replace("max_length", "max_lenght"))
    refused(world, RUN + recipe("ppo"), "ppo.yaml: max_lenght", "did you mean max_length?")
    refused(
        world,
        RUN + recipe("sft", "--num_train_epochs", "many"),
        "command line: num_train_epochs is 'many' (str); it must be float",
    )
    refused(world, RUN + recipe("sft", "--learning_rate", "nan"), "is nan", "finite number")
    refused(world, RUN + recipe("sft", "--max_steps", "0"), "max_steps is 0; it must be above 0")


# ---------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("stage", "rows", "words"),
    [
        ("sft", [{"prompt": " ", "answer": "1"}], ["empty prompt 1 (row 21)"]),
        ("sft", [{"prompt": "a", "answer": ""}], ["empty completion 1 (row 21)"]),
        (
            "reward",
            [{"prompt": "a", "chosen": "b", "rejected": "b"}],
            ["chosen == rejected 1 (row 21)", "correct or delete these rows"],
        ),
    ],
)
def test_bad_records(world, stage, rows, words):
    good = [
        {"prompt": f"{i}", "answer": "1"}
        if stage == "sft"
        else {"prompt": f"{i}", "chosen": "b", "rejected": "c"}
        for i in range(20)
    ]
    write(world / "mine.jsonl", [*good, *rows])
    refused(world, RUN + recipe(stage, "--datasets", "mine.jsonl"), "1 of 21 rows", *words)


def test_missing_and_broken_data(world):
    refused(
        world, RUN + recipe("sft", "--datasets", "none.jsonl"), "no file at none.jsonl", "looked in"
    )
    refused(world, RUN + recipe("sft", "--datasets", "gsm9k"), "did you mean gsm8k?")
    with (world / "sums.jsonl").open("a") as stream:
        stream.write('{"question": \n')
    refused(world, RUN + recipe("sft"), "sums.jsonl line 61 is not valid JSON", "correct or delete")


def test_a_local_file_is_enough_and_its_mapping_is_said_once(world):
    said = "sums.jsonl: prompt-completion records from prompt = question, answer = answer"
    done = run(world, [*ALIGN, "data", "show", "sums.jsonl"])
    assert done.returncode == 0 and done.stderr.count(said) == 1, done.stderr


# ---------------------------------------------------------------- checkpoints


def truncated(world: Path) -> None:
    file = world / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def no_weights(world: Path) -> None:
    (world / "base" / "model.safetensors").unlink()


def architecture(world: Path) -> None:
    tiny.edit_json(world / "base/config.json", architectures=["BertForMaskedLM"])


def other_config(world: Path) -> None:
    tiny.edit_json(world / "base/config.json", num_hidden_layers=3)


def other_width(world: Path) -> None:
    tiny.edit_json(world / "base/config.json", hidden_size=64)


def other_tokenizer(world: Path) -> None:
    tiny.llama(100, 1, 0).save_pretrained(world / "base")


def no_tokenizer(world: Path) -> None:
    (world / "base" / "tokenizer.json").unlink()


def no_eos(world: Path) -> None:
    for name in ("tokenizer_config", "generation_config", "config"):
        key = "eos_token" if name == "tokenizer_config" else "eos_token_id"
        tiny.edit_json(world / "base" / f"{name}.json", **{key: None})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_weights, ["base holds no weights (model.safetensors)", "give another folder"]),
        (truncated, ["base/model.safetensors is truncated", "bytes found", "expected; copy"]),
        (architecture, ["base holds BertForMaskedLM; this needs a language model"]),
        (other_config, ["config.json says num_hidden_layers 3 and the weights have 2"]),
        (other_width, ["config.json says hidden_size 64 and the weights have 32"]),
        (other_tokenizer, ["ids up to", "100 rows", "belongs to another model"]),
        (no_tokenizer, ["base holds no tokenizer (tokenizer.json)"]),
        (no_eos, ["base names no EOS token", "add the token"]),
    ],
)
def test_bad_checkpoints(world, damage, words):
    damage(world)
    refused(world, RUN + recipe("sft"), *words)


def test_template_context_and_names(world):
    refused(
        world,
        RUN + recipe("sft", "--chat_template", "null"),
        "has no chat template: it is a base model",
        "--chat_template plain",
    )
    refused(
        world,
        RUN + recipe("sft", "--max_length", "300"),
        "max_length 300 is longer than the context of base (256 tokens); set max_length: 256",
    )
    refused(
        world,
        RUN + recipe("sft", "--model_name_or_path", "nobody/nothing"),
        "HF_HUB_OFFLINE is set; fetch it where there is network: hf download nobody/nothing",
    )


def test_weights_that_config_json_asks_for_are_never_made_up(world):
    """Found while loading: an output layer of its own that the file has not."""
    from align import checkpoint
    from align.errors import CheckpointError

    tiny.edit_json(world / "base/config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lacks 1 of the weights .*lm_head.weight"):
        checkpoint.load_causal(str(world / "base"))
    tiny.edit_json(world / "base/config.json", tie_word_embeddings=True, intermediate_size=96)
    with pytest.raises(CheckpointError, match=r"other shapes than config.json says"):
        checkpoint.load_causal(str(world / "base"))
    tiny.edit_json(world / "base/config.json", model_type="llamo")
    with pytest.raises(CheckpointError, match=r"model type `llamo`.*give another checkpoint"):
        checkpoint.load_causal(str(world / "base"))


def test_reward_models(world):
    from safetensors.torch import load_file, save_file

    file = world / "reward" / "model.safetensors"
    weights = load_file(file)
    wide = {**weights, "score.weight": weights["score.weight"].repeat(5, 1)}
    save_file(wide, file, metadata={"format": "pt"})
    refused(world, RUN + recipe("ppo"), "a head with 5 outputs", "num_labels=1")
    save_file(weights, file, metadata={"format": "pt"})
    eos = json.loads((world / "reward/config.json").read_text())["eos_token_id"]
    tiny.edit_json(world / "reward/config.json", pad_token_id=eos)
    refused(world, RUN + recipe("ppo"), "it is blind to EOS; train it again with recipes/reward.py")
    refused(
        world, RUN + recipe("ppo", "--reward_model", "sft"), "sft holds LlamaForCausalLM", "reward"
    )
    refused(world, RUN + recipe("ppo", "--reward_model", "null"), "give reward_model or")


# ---------------------------------------------------------------- output folder, disk


def test_output_folders(world):
    (world / "thesis").mkdir()
    (world / "thesis" / "thesis.tex").write_text("years of work")
    for more in ([], ["--overwrite"], ["--resume"]):
        refused(
            world,
            RUN + recipe("sft", "--output_dir", "thesis", *more),
            "thesis holds files that are no run of align; give another folder",
        )
    marker = {"stage": "sft", "config": {"seed": 3}}
    (world / "thesis" / "run.json").write_text(json.dumps(marker))
    refused(
        world,
        RUN + recipe("sft", "--output_dir", "thesis"),
        "holds an interrupted run of sft; give --resume, --overwrite, or another --output_dir",
    )
    refused(world, RUN + recipe("sft", "--output_dir", "thesis", "--resume"), "(seed: 3 -> 0); put")
    refused(
        world,
        RUN + recipe("sft", "--output_dir", "base", "--overwrite"),
        "output_dir base is the checkpoint that this stage starts from",
    )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can't be mounted here (Linux and root only)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_before_the_start(world, small_disk):
    (small_disk / "ballast").write_bytes(b"0" * 700_000)
    out = str(small_disk / "out")
    refused(
        world,
        RUN + recipe("sft", "--output_dir", out),
        "free and three checkpoints of sft need 1012 KiB",
        "give another --output_dir",
    )
    assert not Path(out).exists()


def until(process: subprocess.Popen, condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.01)


def start(world: Path, command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=world,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_a_disk_that_fills_up_during_ppo(world, small_disk):
    """The checkpoint before is intact; the message says how to go on."""
    from align.checkpoint import newest_complete

    out = small_disk / "out"
    process = start(world, RUN + recipe("ppo", "--output_dir", str(out), "--use_peft"))
    until(process, lambda: newest_complete(out))
    try:
        with (small_disk / "ballast").open("wb") as ballast:
            while True:
                ballast.write(b"0" * 4096)
                ballast.flush()
    except OSError:
        pass
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in stderr, stderr
    last = stderr.splitlines()[-1]
    newest = newest_complete(out)
    assert newest and last.startswith(f"error: the disk is full while writing in {out}")
    assert f"{newest.name} is intact; free some space, then: python " in last
    assert last.endswith("--use_peft --resume")


# ---------------------------------------------------------------- the chain


def chain(world: Path, *stages: str) -> list[str]:
    """A recipe of these stages that starts from the base, and the command that runs it."""
    (world / "mine").mkdir()
    for stage in stages:
        text = (world / f"{stage}.yaml").read_text()
        (world / "mine" / f"{stage}.yaml").write_text(text)
    return [*ALIGN, "run", "mine", "--output", "out"]


def test_a_chain_looks_at_every_stage_before_the_first_starts(world):
    command = chain(world, "sft", "reward", "ppo")
    refused(world, [*command, "--set", "ppo.max_length=300"], "max_length 300 is longer than")
    refused(world, [*command, "--set", "ppo.datasets=none"], "no data card 'none'")
    refused(world, [*command, "--set", "sft.seed=x"], "--set sft: seed is 'x' (str); it must be")
    refused(world, [*command, "--set", "ppo.kl_coeff=1"], "did you mean kl_coef?")


def test_a_chain_keeps_out_of_folders_that_are_not_its_own(world):
    command = chain(world, "sft")
    (world / "thesis").mkdir()
    (world / "thesis" / "thesis.tex").write_text("years of work")
    refused(world, [*command, "--output", "thesis"], "thesis holds files that are no run of align")
    (world / "thesis" / "recipe.yaml").write_text("name: other\n")
    refused(world, [*command, "--output", "thesis"], "holds a run of the recipe other, not mine")
    refused(world, [*command, "--output", "sft.yaml"], "sft.yaml is a file; give --output another")


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_on_the_reward_model(world):
    process = start(world, RUN + recipe("reward"))
    until(process, lambda: (world / "out/checkpoint-5/manifest.json").exists())
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    assert "interrupted: saved step " in stderr.splitlines()[-1]
    assert stderr.splitlines()[-1].endswith("reward.py --config reward.yaml --resume")


def test_ctrl_c_on_a_chain_names_the_chain(world):
    """A terminal tells the whole group: the stage saves, the chain says how to go on."""
    process = start(world, chain(world, "sft"))
    until(process, lambda: (world / "out/sft/checkpoint-5/manifest.json").exists())
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    last = stderr.splitlines()[-1]
    assert "interrupted: saved step " in last
    assert last.endswith("resume with: align run mine --output out")


def test_sigterm_on_a_chain_reaches_its_stage(world):
    """What schedulers send goes to the chain alone."""
    child = "import sys, time; from align.errors import run_main; "
    child += "print('ready', flush=True); run_main(lambda: time.sleep(60))"
    code = "import sys; from align import pipeline; from align.errors import run_main; "
    code += f"run_main(lambda: pipeline._process([sys.executable, '-c', {child!r}], 'eval'))"
    process = start(world, [sys.executable, "-c", code])
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert "interrupted" in process.communicate(timeout=20)[1]
    assert process.returncode == 130


# ---------------------------------------------------------------- accelerate launch


@pytest.mark.parametrize("launcher", [LAUNCH, TWO], ids=["one", "two"])
def test_one_process_speaks_once(world, launcher):
    """The launcher adds a traceback and exit code of its own; our line stands once above it."""
    done = run(world, launcher + recipe("sft", "--max_length", "300"))
    assert done.returncode != 0 and not (world / "out").exists()
    assert done.stderr.count("error: max_length 300 is longer than the context of base") == 1
    assert done.stderr.count("preflight: model: base") == 1


# ---------------------------------------------------------------- evaluation


def test_evaluations(world):
    bias = [*ALIGN, "eval", "--model", "base", "--output", "out", "--suite"]
    refused(world, [*bias, "bais"], "no suite, task or YAML file 'bais'; did you mean bias?")
    refused(world, [*bias, "quickstart_sum"], "did you mean quickstart_sums or")
    refused(world, [*bias, "bias", "--limit", "0"], "--limit: '0' is no count; give 1 or more")
    refused(world, [*bias, "bias", "--limi", "3"], "did you mean --limit?")
    refused(world, [*bias, "none.yaml"], "no task or suite file at none.yaml")
    model = [*ALIGN, "eval", "--suite", "bias", "--output", "out", "--model"]
    refused(world, [*model, "./nope"], "no checkpoint at ./nope; run the stage that makes it")
    refused(world, [*model, "me/nope"], "hf download me/nope")
    truncated(world)
    refused(world, [*model, "base"], "base/model.safetensors is truncated")


def ended(capsys, *args: str) -> tuple[int, str]:
    """(exit code, last line of stderr) of `align …` in this process: torch is here already."""
    from align import cli
    from align.errors import run_main

    with pytest.raises(SystemExit) as caught:
        run_main(lambda: cli.main(list(args)))
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return caught.value.code, err.splitlines()[-1]


TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: ITEMS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""


@pytest.fixture
def task(world, monkeypatch) -> Path:
    """A task in plain lm-eval YAML, with lm-eval's own metric, two of whose items lack gold."""
    monkeypatch.chdir(world)
    monkeypatch.delenv("ALIGN_DATA", raising=False)
    items = [{"q": f"is it {i}", "gold": i % 2, "choices": ["x", "y"]} for i in range(4)]
    items += [{"q": "a", "gold": None, "choices": ["x", "y"]}]
    items += [{"q": "b", "gold": 7, "choices": ["x", "y"]}]
    write(world / "items.jsonl", items)
    (world / "mine.yaml").write_text(TASK.replace("ITEMS", str(world / "items.jsonl")))
    return world / "mine.yaml"


def evaluated(capsys, suite: str, *more: str) -> tuple[int, str]:
    return ended(capsys, "eval", "--model", "base", "--suite", suite, "--output", "out", *more)


def test_an_item_without_gold_is_unscored_never_wrong(task, capsys):
    code, line = evaluated(capsys, "mine.yaml")
    assert code == 1 and "2 of 6 items of mine are unscored (more than 5%), mostly: no gold" in line
    found = json.loads(Path("out/results.json").read_text())["tasks"]["mine"]
    assert (found["n"], found["unscored"], found["metrics"]["acc"]["n"]) == (6, 2, 4)


def test_task_files_and_their_data(task, capsys):
    code, line = evaluated(capsys, "bbq")
    assert (
        code == 2 and "bias/bbq/Age.jsonl.gz" in line and "nyu-mll/BBQ and set ALIGN_DATA" in line
    )
    code, line = evaluated(capsys, "stereoset")
    assert code == 2 and "HF_HUB_OFFLINE=0 align data pull stereoset" in line
    Path("items.jsonl").unlink()
    code, line = evaluated(capsys, "mine.yaml")
    assert code == 2 and "mine: a data file is missing" in line and "correct the path" in line
    task.write_text(task.read_text().replace("doc_to_text", "doc_to_tex"))
    code, line = evaluated(capsys, "mine.yaml")
    assert code == 2 and "doc_to_tex is not a key" in line and "did you mean doc_to_text?" in line
    assert not Path("out/results.json").exists()


def test_results_that_can_t_be_compared(task, capsys):
    def results(name: str, ids: str, schema: int = 1) -> str:
        (Path(name) / "items").mkdir(parents=True)
        entry = {"version": 1, "data_sha256": "d", "num_fewshot": 0, "metrics": {"acc": {}}}
        content = {"schema": schema, "model": {"name": name}, "tasks": {"t": entry}}
        (Path(name) / "results.json").write_text(json.dumps(content))
        rows = [{"id": i, "cluster": i, "scores": {"acc": 1.0}} for i in ids]
        write(Path(name) / "items" / "t.jsonl", rows)
        return name

    code, line = ended(capsys, "compare", results("old", "ab", schema=7), results("a", "ab"))
    assert code == 2 and "old/results.json has schema 7, this version reads 1" in line
    code, line = ended(capsys, "compare", "a", results("b", "ac"))
    assert code == 2 and "1 are only in the first (b) and 1 only in the second (c)" in line
    code, line = ended(capsys, "compare", "a", "nowhere")
    assert code == 2 and "no results.json at nowhere" in line
