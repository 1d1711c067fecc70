"""The chain: base → sft → reward → ppo → eval of base, sft and ppo → tax → report and cards.

Every training stage is a process of its own. A step is skipped when its inputs (config, data, code,
parent weights) have not changed since it finished, and continued when it was interrupted. All that
is remembered stands in ``<run>/.steps/<step>.json``; deleting that file does a step again.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml

from align import __version__, paths
from align.config import STAGES, PPOStage
from align.errors import CODE_FILE, CheckpointError, ConfigError, RunError, Terminated
from align.parsing import load_recipe, to_yaml
from align.step_keys import step_key

TRAINING = ("sft", "reward", "ppo")
LAUNCHER = "accelerate.commands.launch"
STEPS = (*TRAINING, "eval", "tax", "report")


@dataclass(frozen=True)
class Run:
    """A resolved recipe and the folder it fills."""

    name: str
    folder: Path
    stages: dict[str, Any]
    accelerate_config: Path | None = None

    def checkpoint(self, stage: str) -> str:
        """Checkpoint directory of a stage; ``base``: where the first training stage starts."""
        if stage == "base":
            return str(self.stages[self.trained[0]].model_name_or_path)
        return str(self.folder / stage)

    @property
    def trained(self) -> list[str]:
        """Training stages of this recipe, in order."""
        return [s for s in TRAINING if s in self.stages]

    @property
    def evaluated(self) -> list[str]:
        """Checkpoints with a results.json of their own."""
        if "eval" not in self.stages:
            return []
        judged = self.stages["eval"].reward_suites
        return ["base", *(s for s in self.trained if s != "reward" or judged)]

    @property
    def steps(self) -> list[str]:
        """Steps of the chain that this recipe has."""
        after = ["eval", "tax", "report"] if "eval" in self.stages else ["report"]
        return [*self.trained, *after]


def resolve(recipe: str, output: Path | None, overrides: dict[str, dict[str, Any]]) -> Run:
    """A recipe with its stages chained: each stage starts from the checkpoint of the one before.

    Raises:
        ConfigError: see `align.parsing.load_recipe`.
    """
    stages = load_recipe(recipe, overrides)
    name = Path(recipe).resolve().name if Path(recipe).is_dir() else recipe
    folder = (output or Path("runs") / name).resolve()
    run = Run(name, folder, stages)
    if not run.trained:
        raise ConfigError(
            f"recipe {recipe!r} trains nothing; it needs sft.yaml, reward.yaml or ppo.yaml"
        )
    for stage in run.trained:
        changes: dict[str, Any] = {"output_dir": str(folder / stage)}
        if stage != "sft" and "sft" in stages:
            changes["model_name_or_path"] = str(folder / "sft")
            changes["model_revision"] = None
        if isinstance(stages[stage], PPOStage) and "reward" in stages:
            changes["reward_model"] = str(folder / "reward")
        stages[stage] = replace(stages[stage], **changes)
    return run


def execute(run: Run, first: str | None = None, last: str | None = None) -> dict[str, str]:
    """Carry out the steps from ``first`` to ``last``; returns step → ran | continued | unchanged.

    Every stage's input is looked at before the first stage starts.

    Raises:
        ConfigError: a step that the recipe doesn't have; a folder that holds something else.
        AlignError: what is wrong with the input of a stage.
        RunError: a step failed; its own message stands above.
    """
    steps = _between(run.steps, first, last)
    _check_folder(run)
    _look(run, [s for s in steps if s in TRAINING], quiet=True)
    with _locked(run.folder):
        _write_recipe(run)
        outcome = {}
        for number, step in enumerate(steps, 1):
            started = time.monotonic()
            outcome[step] = _step(run, step)
            seconds = time.monotonic() - started
            say(f"[{number}/{len(steps)}] {step}: {outcome[step]} ({seconds:.0f} s)")
    return outcome


def dry_run(run: Run) -> list[tuple[str, str]]:
    """(step, what would happen) without doing anything."""
    plan, changed = [], False
    for step in run.steps:
        memory = _remembered(run, step)
        try:
            same = memory.get("key") == step_key(run, step)
        except (FileNotFoundError, CheckpointError):  # the parent does not exist yet
            same = False
        done = same and memory.get("state") == "done" and not changed
        changed = changed or not done
        state = memory.get("state") if same else None
        plan.append((step, "unchanged" if done else "continue" if state == "started" else "run"))
    return plan


def doctor(run: Run) -> None:
    """Check every training stage before anything is loaded; a parent to come is the base so far.

    Raises:
        AlignError: the first thing that is wrong, and what to do.
    """
    _check_folder(run)
    _look(run, run.trained, quiet=False)


def _look(run: Run, stages: list[str], quiet: bool) -> None:
    from align.preflight import check_launch, launched_as, preflight

    launch = launched_as(run.accelerate_config) if run.accelerate_config else {}
    plan = dict(dry_run(run))
    to_do = [s for s in stages if plan[s] != "unchanged"]
    to_come = [str(run.folder / s) for s in to_do]
    template = run.stages[run.trained[0]].chat_template
    for stage in stages:
        if not quiet:
            say(f"{stage}:{'' if stage in to_do else ' unchanged'}")
        if stage not in to_do:
            continue
        going_on = plan[stage] == "continue"
        config = replace(run.stages[stage], resume=going_on, overwrite=not going_on)
        if config.model_name_or_path in to_come:
            config = replace(config, model_name_or_path=run.checkpoint("base"))
            config = replace(config, chat_template=config.chat_template or template)
        check_launch(config, launch)  # accelerate's own words come with a traceback
        preflight(config, to_come, quiet)


def _check_folder(run: Run) -> None:
    """The folder is new, or holds this recipe's run.

    Raises:
        ConfigError: it holds something else.
    """
    folder, advice = run.folder, "give --output another folder"
    if folder.is_file():
        raise ConfigError(f"--output {folder} is a file; {advice}")
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        if folder.is_dir() and {p.name for p in folder.iterdir()} - {".lock", ".steps"}:
            raise ConfigError(f"{folder} holds files that are no run of align; {advice}")
        return
    name = (yaml.safe_load(recipe.read_text("utf-8")) or {}).get("name")
    if name != run.name:
        raise ConfigError(f"{folder} holds a run of the recipe {name}, not {run.name}; {advice}")


def say(line: str) -> None:
    """One line for the person who watches."""
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- one step


def _step(run: Run, step: str) -> str:
    key, memory = step_key(run, step), _remembered(run, step)
    known = memory.get("key") == key
    if known and memory.get("state") == "done" and _outputs_stand(run, step):
        return "unchanged"
    going_on = known and memory.get("state") == "started"
    _remember(run, step, {"key": key, "state": "started"})
    _carry_out(run, step, going_on)
    _remember(run, step, {"key": key, "state": "done"})
    return "continued" if going_on else "ran"


def _carry_out(run: Run, step: str, going_on: bool) -> None:
    if step in TRAINING:
        _train(run, step, going_on)
    elif step == "eval":
        _process([sys.executable, "-m", "align.pipeline", str(run.folder)], step)
    elif step == "tax":
        write_tax(run.folder, run.evaluated)
    else:
        write_report(run.folder, run.trained)


def _train(run: Run, stage: str, going_on: bool) -> None:
    """One training stage through its recipe, in a process of its own."""
    config = replace(run.stages[stage], resume=going_on, overwrite=not going_on)
    file = run.folder / ".steps" / f"{stage}.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    launcher = [sys.executable]
    if run.accelerate_config:
        launcher += [
            "-m",
            LAUNCHER,
            "--quiet",  # our own line says what was wrong
            "--config_file",
            str(run.accelerate_config),
        ]
    command = [*launcher, str(paths.RECIPES / f"{stage}.py"), "--config", str(file)]
    _process(command, stage, file.with_suffix(".code"))


def _process(command: list[str], step: str, code_file: Path | None = None) -> None:
    """Run a step to its end; it dies with us, so a killed run leaves nobody writing in its folder.

    Behind a launcher the step's own exit code comes through ``code_file``.

    Raises:
        SystemExit: with the step's own exit code, after the step has printed why.
    """
    environment = dict(os.environ)
    if code_file is not None:
        code_file.unlink(missing_ok=True)
        environment[CODE_FILE] = str(code_file)
    child = subprocess.Popen(command, preexec_fn=_die_with_parent, env=environment)
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt as error:  # the child saves and says how to resume
            if LAUNCHER not in command or isinstance(error, Terminated):
                child.send_signal(signal.SIGTERM)  # a terminal tells it too; kill tells only us
    if code < 0:
        raise RunError(
            f"{step} was ended by signal {signal.Signals(-code).name}; the same command goes on "
            "from its last checkpoint"
        )
    if code:
        left = code_file.read_text("ascii") if code_file is not None and code_file.is_file() else ""
        raise SystemExit(int(left or code))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _outputs_stand(run: Run, step: str) -> bool:
    wanted = {
        "eval": [f"eval/{s}/results.json" for s in run.evaluated],
        "tax": ["tax.json"],
        "report": ["report.html"],
    }
    files = wanted.get(step, [f"{step}/lineage.json"])
    return all((run.folder / f).is_file() for f in files)


# ---------------------------------------------------------------- the run's folder


def _remembered(run: Run, step: str) -> dict[str, Any]:
    file = run.folder / ".steps" / f"{step}.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def _remember(run: Run, step: str, memory: dict[str, Any]) -> None:
    file = run.folder / ".steps" / f"{step}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".tmp")
    written.write_text(json.dumps(memory), encoding="utf-8")
    os.replace(written, file)


def _write_recipe(run: Run) -> None:
    """The fully resolved recipe, as people read it and as `align.pipeline` reads it back."""
    content = {
        "name": run.name,
        "align": __version__,
        "stages": {s: asdict(c) for s, c in run.stages.items()},
    }
    (run.folder / ".steps").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (run.folder / "recipe.yaml").write_text(text, encoding="utf-8")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two runs never write in one folder.

    Raises:
        RunError: another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        _take(lock, folder)
        yield


def _take(lock: IO[str], folder: Path) -> None:
    for _ in range(20):  # a run that was killed just now may need a moment to let go
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
    raise RunError(
        f"another `align run` is writing in {folder}; wait for it, or give --output another folder"
    )


def _between(steps: list[str], first: str | None, last: str | None) -> list[str]:
    for flag, name in (("--from", first), ("--to", last)):
        if name is not None and name not in steps:
            raise ConfigError(f"{flag} {name}: this recipe has the steps {', '.join(steps)}")
    begin = steps.index(first) if first else 0
    end = steps.index(last) + 1 if last else len(steps)
    if begin >= end:
        raise ConfigError(f"--from {first} --to {last}: {first} comes after {last}; swap them")
    return steps[begin:end]


# ---------------------------------------------------------------- after the training


def evaluate_all(folder: Path) -> None:
    """Evaluate base and every trained checkpoint of a run in this process (heavy imports once)."""
    from align.evaluation.run import evaluate

    recipe = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    stages = {stage: STAGES[stage](**values) for stage, values in recipe["stages"].items()}
    run, config = Run(recipe["name"], folder, stages), stages["eval"]
    for stage in run.evaluated:
        evaluate(
            run.checkpoint(stage),
            config.reward_suites if stage == "reward" else config.suites,
            output=folder / "eval" / stage,
            limit=config.limit,
            limits=config.limits,
            num_fewshot=config.num_fewshot,
            seed=config.seed,
            batch_size=config.batch_size,
            toxicity_model=config.toxicity_model,
        )


def write_tax(folder: Path, evaluated: list[str]) -> None:
    """tax.json of a run: every later checkpoint against the base, and PPO against SFT too."""
    from align.evaluation.tax import alignment_tax

    policies = [s for s in evaluated if s != "reward"]
    tax = alignment_tax(
        folder / "eval" / policies[0], {s: folder / "eval" / s for s in policies[1:]}
    )
    text = json.dumps(tax, indent=1, allow_nan=False)
    (folder / "tax.json").write_text(text + "\n", encoding="utf-8")


def write_report(folder: Path, trained: list[str]) -> None:
    """report.html of a run and the model card of each of its checkpoints."""
    from align import card, report

    report.write(folder)
    for stage in trained:
        card.write(folder / stage, folder)


if __name__ == "__main__":
    from align.errors import run_main

    run_main(lambda: evaluate_all(Path(sys.argv[1])))
