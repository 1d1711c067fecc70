"""The commands. Heavy imports stand inside them, so that ``align --help`` answers at once."""

import argparse
import difflib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from align import __version__, paths
from align.errors import ConfigError, Interrupted, is_main_process, run_main
from align.guards import RESUME

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


class Parser(argparse.ArgumentParser):
    """argparse that reports mistakes as align's errors, with the nearest right word."""

    def __init__(self, prog: str, **options: Any) -> None:
        """Flags are written out: half a flag is taken for a misspelled one."""
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            ConfigError: always.
        """
        words = message.split("unrecognized arguments: ")[-1].split()
        flags = [f for a in self._actions for f in a.option_strings]
        near = difflib.get_close_matches(words[0].split("=")[0], flags, n=1) if words else []
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        raise ConfigError(f"{self.prog}: {message}; {hint}")


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
    from align.parsing import overrides

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
        print(f"report: {_shown(run.folder / 'report.html')}")
    made = [s for s in run.trained if (run.folder / s / "lineage.json").is_file()]
    if made:
        model = _shown(run.folder / made[-1])
        print(f"model:  {model} (its card: {model / 'README.md'})")
        print(f"next:   align chat {model}   or   align eval --model {model} --suite bias")


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _add_set(parser: argparse.ArgumentParser) -> None:
    text = "change one field of one stage, e.g. ppo.kl_coef=0.1 (repeatable)"
    parser.add_argument(
        "--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help=text
    )


# ---------------------------------------------------------------- eval


def command_eval(args: list[str]) -> int | None:
    """``align eval``."""
    if args[:1] == ["selftest"]:
        _selftest(args[1:])
        return None
    options = _eval_parser().parse_args(args)
    if _is_sweep(options):
        _sweep(options)
        return None
    from align.evaluation.export import export
    from align.evaluation.gates import check_gates, parse_gate
    from align.evaluation.look import look
    from align.evaluation.processes import launch, leave, started_by_a_launcher
    from align.evaluation.results import legend
    from align.evaluation.results import table as results_table
    from align.evaluation.start import quick_imports

    gates = [parse_gate(text) for text in options.gate]
    models = [options.model or newest_checkpoint(), *options.baseline]
    for model in models:
        look(model, options.suite, options.include_path)
    if options.processes > 1 and not started_by_a_launcher():
        return launch(options.processes, args)
    with quick_imports():
        from align.evaluation.run import evaluate

    outputs = [options.output, *[None] * len(options.baseline)]
    outputs = [folder or _eval_folder(m) for folder, m in zip(outputs, models, strict=True)]
    results = [
        evaluate(
            model,
            options.suite,
            output=output,
            limit=options.limit,
            num_fewshot=options.num_fewshot,
            seed=options.seed,
            batch_size=options.batch_size,
            toxicity_model=options.toxicity_model,
            allow_missing=options.allow_missing,
            include_path=options.include_path,
        )
        for model, output in zip(models, outputs, strict=True)
    ]
    leave()
    if not is_main_process():
        return None
    tax = _eval_tax(models, outputs) if options.baseline else None
    if options.json:
        content = results[0] if tax is None else {**results[0], "tax": tax}
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        for result in results:
            print(results_table(result))
        if tax is not None:
            from align.evaluation.tax import table as tax_table

            print(tax_table(tax))
        print(f"results: {_shown(outputs[0] / 'results.json')}\n")
        print(legend(results))
    for path in export(outputs[0], options.export) if options.export else []:
        print(f"exported: {_shown(path)}", file=sys.stderr)
    for line in check_gates(results[0], tax, gates):
        print(line, file=sys.stderr)
    return None


EXPORTS = ("lm-eval", "every-eval-ever")


def _eval_parser() -> Parser:
    parser = Parser("align eval", epilog="example: align eval --suite bias --suite toxicity")
    parser.add_argument("--model", help="folder or Hub id (default: newest under runs/, else base)")
    parser.add_argument("--suite", action="append", required=True, help="suite, task or YAML file")
    parser.add_argument("--baseline", action="append", default=[], metavar="M", help="compare to M")
    parser.add_argument("--output", type=Path, help="folder for results.json and items/")
    parser.add_argument("--limit", type=_positive, help="items of each task, drawn with the seed")
    parser.add_argument("--num-fewshot", type=_shots, help="worked examples (default: the task's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling and choice of items")
    parser.add_argument("--batch-size", type=_batch_size, default="auto", help="number or auto")
    parser.add_argument("--processes", type=_positive, default=1, help="share the work among N")
    parser.add_argument("--toxicity-model", default="quickstart", help="or Hub id[#LABEL]")
    parser.add_argument("--include-path", type=Path, help="folder with task YAMLs of your own")
    parser.add_argument("--allow-missing", action="store_true", help="go on without missing data")
    parser.add_argument("--gate", action="append", default=[], help='e.g. "tax<1.0pp"; else exit 1')
    parser.add_argument("--export", action="append", default=[], choices=EXPORTS, help="repeatable")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    sweep = parser.add_argument_group("weight averages of --model (α = 1) and another (α = 0)")
    sweep.add_argument("--average-with", metavar="M", help="checkpoint at α = 0: SFT")
    sweep.add_argument("--alpha", type=_alpha, action="append", help="default 0.25, 0.5, 0.75")
    sweep.add_argument("--reward-model", metavar="M", help="scores answers to held-out prompts")
    return parser


def _alpha(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no weight; give a number from 0 to 1")
    return value


def _is_sweep(options: argparse.Namespace) -> bool:
    """Whether averages are asked for.

    Raises:
        ConfigError: an option that only averages have, or one that they don't take.
    """
    if options.average_with is None:
        for name in ("alpha", "reward_model"):
            if getattr(options, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} belongs to a sweep; give --average-with M as well")
        return False
    if len(options.baseline) != 1 or options.gate:
        raise ConfigError(
            f"--average-with needs one --baseline and takes no --gate; got {len(options.baseline)} "
            f"and {len(options.gate)}"
        )
    if options.processes > 1 or options.export:
        raise ConfigError("--average-with takes neither --processes nor --export; leave them out")
    return True


def _sweep(options: argparse.Namespace) -> None:
    """``align eval --average-with``: tax and reward of the averages of two checkpoints."""
    from align.evaluation.held_out import held_out
    from align.evaluation.look import look

    names = [options.average_with, options.model or newest_checkpoint()]
    for name in (*names, options.baseline[0]):
        look(name, options.suite, options.include_path)
    first, model = map(_checkpoint_folder, names)
    in_run = (model.parent / "recipe.yaml").is_file()
    output = options.output or (model.parent / "eval" if in_run else _eval_folder(str(model)))
    asked = held_out(model) if options.reward_model else None
    from align.evaluation import sweep

    found = sweep.sweep(
        first,
        model,
        options.baseline[0],
        output,
        suites=options.suite,
        alphas=options.alpha or sweep.ALPHAS,
        asked=asked,
        reward_model=options.reward_model,
        seed=options.seed,
        batch_size=options.batch_size,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        toxicity_model=options.toxicity_model,
        allow_missing=options.allow_missing,
        include_path=options.include_path,
    )
    print(json.dumps(found, indent=1, allow_nan=False) if options.json else sweep.table(found))
    print(f"sweep: {_shown(output / sweep.FILE)}", file=sys.stderr)


def _checkpoint_folder(name: str) -> Path:
    """Where a checkpoint's files are.

    Raises:
        ConfigError: not on this machine.
    """
    from align import checkpoint

    folder = checkpoint.local_folder(name)
    if folder is None:
        raise ConfigError(f"{name} is not on this machine; averages are made of local files")
    return folder


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give 1 or more")
    return int(text)


def _shots(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


def newest_checkpoint() -> str:
    """The newest aligned checkpoint under runs/, else the shipped base; says which on stderr."""
    found = [p for stage in ("ppo", "sft") for p in Path("runs").glob(f"*/{stage}/lineage.json")]
    aligned = [p for p in found if p.parent.name == "ppo"] or found
    newest = max(aligned, key=lambda p: p.stat().st_mtime, default=None)
    chosen = str(newest.parent) if newest else "quickstart-base"
    print(f"model: {chosen} (no --model given)", file=sys.stderr)
    return chosen


def _eval_folder(model: str) -> Path:
    path = Path(model)
    name = "-".join(path.resolve().parts[-2:]) if path.exists() else model.replace("/", "--")
    return Path("runs") / "eval" / name


def _eval_tax(models: list[str], outputs: list[Path]) -> dict[str, Any]:
    """The model against each baseline, paired by item."""
    from align.evaluation.tax import alignment_tax

    tax: dict[str, Any] = alignment_tax(outputs[1], {models[0]: outputs[0]})
    return tax


def _selftest(args: list[str]) -> None:
    parser = Parser("align eval selftest")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(args)
    from align.evaluation import replay

    replay.selftest(as_json=options.json)


def command_compare(args: list[str]) -> None:
    """``align compare``."""
    parser = Parser(
        "align compare", epilog="example: align compare runs/a/eval/ppo runs/b/eval/ppo"
    )
    parser.add_argument("a", type=Path, help="results.json, its folder, or a checkpoint of a run")
    parser.add_argument("b", type=Path, help="the other one; differences are B − A")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    from align.evaluation.compare import compare, table

    compared = compare(options.a, options.b)
    print(json.dumps(compared, indent=1, allow_nan=False) if options.json else table(compared))


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


# ---------------------------------------------------------------- data, plan, doctor, chat


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
    from align.parsing import overrides

    pipeline.doctor(pipeline.resolve(options.recipe, options.output, overrides(options.set)))


def command_chat(args: list[str]) -> None:
    """``align chat``."""
    parser = Parser("align chat", epilog="example: align chat runs/quickstart/ppo")
    parser.add_argument("model", nargs="?", help="folder or Hub id (default: newest under runs/)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: greedy")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest reply in tokens")
    options = parser.parse_args(args)
    from align.chat import chat

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
