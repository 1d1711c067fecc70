"""The commands. Heavy imports stand inside them, so that ``align --help`` answers at once."""

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align import __version__, paths
from align.errors import ConfigError, Interrupted, run_main
from align.guards import RESUME
from align.parsing import Parser, overrides

OVERVIEW = """\
From a base language model to an aligned one, with measured evidence.

  align run [RECIPE]          the chain: SFT, reward model, PPO, evaluation, tax, report, cards
  align eval --suite NAME     evaluate a checkpoint: benchmarks, tax, toxicity, bias, safety
  align eval --average-with M --baseline B ...   what averages of two checkpoints buy back
  align eval selftest         re-score outputs that the benchmarks' authors released
  align compare A B           two results, paired item by item
  align report RUN            report.html of a run
  align card RUN              model cards of a run; --push REPO sends one to the Hub
  align data list|show|check|pull|build      data sets and their cards
  align plan RECIPE           memory, time and cost before anything is spent
  align doctor RECIPE         check everything that can be checked before weights are loaded
  align chat MODEL            talk to a checkpoint

Examples
  align run quickstart
  align run quickstart --set ppo.kl_coef=0.1 --output runs/more-kl
  align eval --suite bias
  align eval --model runs/quickstart/ppo --baseline runs/quickstart/sft --suite toxicity --json

One stage alone: accelerate launch recipes/sft.py (also reward.py, ppo.py); --help lists its fields.
"""


def entry() -> None:
    """The console script ``align``."""
    run_main(main)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and carry out one command; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "--verbose" in args:
        args.remove("--verbose")
        os.environ["ALIGN_VERBOSE"] = "1"
    if not args or args[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return None
    if args[0] == "--version":
        print(f"align {__version__}")
        return None
    command = COMMANDS.get(args[0])
    if command is None:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"align has no command {args[0]!r}; {hint}")
    code: int | None = command(args[1:])
    return code


# ---------------------------------------------------------------- run


def command_run(args: list[str]) -> None:
    """``align run``."""
    parser = Parser("align run", epilog="example: align run quickstart --set sft.max_steps=50")
    parser.add_argument("recipe", nargs="?", default="quickstart", help="name or folder")
    parser.add_argument("--output", type=Path, help="folder of the run (default runs/<name>)")
    _add_set(parser)
    parser.add_argument("--from", dest="first", metavar="STEP", help="begin with this step")
    parser.add_argument("--to", dest="last", metavar="STEP", help="end with this step")
    parser.add_argument("--accelerate-config", type=Path, help="yaml for `accelerate launch`")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    options = parser.parse_args(args)

    from dataclasses import replace

    from align import pipeline

    run = pipeline.resolve(options.recipe, options.output, overrides(options.set))
    run = replace(run, accelerate_config=_existing(options.accelerate_config))
    if options.dry_run:
        for step, what in pipeline.dry_run(run):
            print(f"{step:8} {what}")
        return
    os.environ[RESUME] = shlex.join(["align", "run", *args])  # what interrupted stages name
    try:
        pipeline.execute(run, options.first, options.last)
    except KeyboardInterrupt as error:
        raise Interrupted(f"finished steps stand; go on with: {os.environ[RESUME]}") from error
    _say_results(run)


def _existing(path: Path | None) -> Path | None:
    """A named file: as given, or from recipes/accelerate."""
    if path is None:
        return None
    for candidate in (path, paths.RECIPES / "accelerate" / path.name):
        if candidate.is_file():
            return candidate.resolve()
    raise ConfigError(f"--accelerate-config {path}: no such file, nor under recipes/accelerate")


def _say_results(run: Any) -> None:
    """The table of what was measured, where things are, and the next command."""
    from align.report import tables

    if (run.folder / "eval").is_dir():
        print(tables.run_table(run.folder))
    if (run.folder / "report.html").is_file():
        print(f"report: {paths.shown(run.folder / 'report.html')}")
    made = [s for s in run.trained if (run.folder / s / "lineage.json").is_file()]
    if made:
        model = paths.shown(run.folder / made[-1])
        print(f"model:  {model} (its card: {model / 'README.md'})")
        print(f"next:   align chat {model}   or   align eval --model {model} --suite bias")


def _add_set(parser: argparse.ArgumentParser) -> None:
    text = "change one field of one stage, e.g. ppo.kl_coef=0.1 (repeatable)"
    parser.add_argument(
        "--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help=text
    )


# ---------------------------------------------------------------- report, card


def command_report(args: list[str]) -> None:
    """``align report``."""
    parser = Parser("align report", epilog="example: align report runs/quickstart")
    parser.add_argument("run", type=Path, help="folder of a run")
    options = parser.parse_args(args)
    from align import report

    print(report.write(_run_folder(options.run)))


def command_card(args: list[str]) -> None:
    """``align card``."""
    parser = Parser("align card", epilog="example: align card runs/quickstart --push me/my-model")
    parser.add_argument("run", type=Path, help="folder of a run, or one checkpoint in it")
    parser.add_argument(
        "--push", metavar="REPO", help="upload the last checkpoint to this Hub repo"
    )
    options = parser.parse_args(args)
    from align import card
    from align.pipeline import TRAINING

    one = (options.run / "lineage.json").is_file()
    run = options.run.parent if one else _run_folder(options.run)
    names = [options.run.name] if one else TRAINING
    checkpoints = [run / n for n in names if (run / n / "lineage.json").is_file()]
    if not checkpoints:
        raise ConfigError(f"{run} holds no finished checkpoint; run `align run` first")
    for checkpoint in checkpoints:
        print(card.write(checkpoint, run))
    if options.push:
        print(card.push(checkpoints[-1], options.push))


def _run_folder(path: Path) -> Path:
    if not (path / "recipe.yaml").is_file():
        raise ConfigError(f"{path} is not the folder of a run (no recipe.yaml); see runs/")
    return path


# ---------------------------------------------------------------- data, eval, plan, doctor, chat


def command_data(args: list[str]) -> None:
    """``align data``."""
    parser = Parser("align data", epilog="example: align data show gsm8k --texts")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    verbs.add_parser("list", help="all cards, and whether their data are here")
    for verb, what in DATA_VERBS.items():
        verbs.add_parser(verb, help=what).add_argument("name", help="card, or a data file")
    verbs.choices["show"].add_argument("--samples", type=int, default=3, help="records to show")
    verbs.choices["show"].add_argument("--texts", action="store_true", help="with their texts")
    verbs.choices["check"].add_argument("--write", action="store_true", help="into the card")
    verbs.choices["build"].add_argument("--output", type=Path, required=True, help="JSONL file")
    options = parser.parse_args(args)
    from align.data import cli

    match options.verb:
        case "list":
            cli.list_cards()
        case "show":
            cli.show(options.name, options.samples, options.texts)
        case "check":
            cli.check(options.name, options.write)
        case "pull":
            cli.pull(options.name)
        case "build":
            cli.build(options.name, options.output)


DATA_VERBS = {
    "show": "one card, and samples",
    "check": "compute counts, lengths, duplicates, hashes, overlap",
    "pull": "fetch the data into the Hugging Face cache",
    "build": "write the valid records as JSON lines",
}


def command_eval(args: list[str]) -> int | None:
    """``align eval``."""
    from align.evaluation import command

    return command.main(args)


def command_compare(args: list[str]) -> None:
    """``align compare``."""
    from align.evaluation import command

    command.compare(args)


def command_plan(args: list[str]) -> None:
    """``align plan``."""
    from align import plan

    plan.main(args)


def command_doctor(args: list[str]) -> None:
    """``align doctor``."""
    parser = Parser("align doctor", epilog="example: align doctor quickstart")
    parser.add_argument("recipe", nargs="?", default="quickstart", help="name or folder")
    parser.add_argument("--output", type=Path, help="folder of the run (default runs/<name>)")
    _add_set(parser)
    options = parser.parse_args(args)
    from align import pipeline

    pipeline.doctor(pipeline.resolve(options.recipe, options.output, overrides(options.set)))


def command_chat(args: list[str]) -> None:
    """``align chat``."""
    parser = Parser("align chat", epilog="example: align chat runs/quickstart/ppo")
    parser.add_argument("model", nargs="?", help="folder or Hub id (default: newest under runs/)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: greedy")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest reply in tokens")
    options = parser.parse_args(args)
    from align.chat import chat
    from align.evaluation.command import newest_checkpoint

    chat(options.model or newest_checkpoint(), options.temperature, options.max_new_tokens)


COMMANDS = {
    "run": command_run,
    "eval": command_eval,
    "compare": command_compare,
    "report": command_report,
    "card": command_card,
    "data": command_data,
    "plan": command_plan,
    "doctor": command_doctor,
    "chat": command_chat,
}

if __name__ == "__main__":
    entry()
