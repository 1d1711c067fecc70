"""``align eval`` and ``align compare``: the input is checked before anything heavy is imported."""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from align.errors import ConfigError, is_main_process
from align.parsing import Parser
from align.paths import shown

EXPORTS = ("lm-eval", "every-eval-ever")


def main(args: list[str]) -> int | None:
    """``align eval``."""
    if args[:1] == ["selftest"]:
        _selftest(args[1:])
        return None
    options = _parser().parse_args(args)
    if _is_sweep(options):
        _sweep(options)
        return None
    from align.evaluation.export import export
    from align.evaluation.gates import check_askable, check_gates, parse_gate
    from align.evaluation.look import look
    from align.evaluation.processes import launch, leave, started_by_a_launcher
    from align.evaluation.results import legend
    from align.evaluation.results import table as results_table
    from align.evaluation.start import quick_imports

    gates = [parse_gate(text) for text in options.gate]
    models = [options.model or newest_checkpoint(), *options.baseline]
    looked = [look(model, options.suite, options.include_path) for model in models]
    check_askable(gates, [file.name for file in looked[0].files], len(options.baseline))
    outputs = [options.output, *[None] * len(options.baseline)]
    outputs = [folder or _folder(m) for folder, m in zip(outputs, models, strict=True)]
    for folder in outputs:
        _check_writable(folder)
    if options.processes > 1 and not started_by_a_launcher():
        return launch(options.processes, args)
    with quick_imports():
        from align.evaluation.run import evaluate

    results = [
        evaluate(
            model,
            options.suite,
            output=output,
            **_shared(options),
        )
        for model, output in zip(models, outputs, strict=True)
    ]
    leave()
    if not is_main_process():
        return None
    tax = _tax(models, outputs) if options.baseline else None
    if options.json:
        content = results[0] if tax is None else {**results[0], "tax": tax}
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        for result in results:
            print(results_table(result))
        if tax is not None:
            from align.evaluation.tax import table as tax_table

            print(tax_table(tax))
        print(f"results: {shown(outputs[0] / 'results.json')}\n")
        print(legend(results))
    for path in export(outputs[0], options.export) if options.export else []:
        print(f"exported: {shown(path)}", file=sys.stderr)
    for line in check_gates(results[0], tax, gates):
        print(line, file=sys.stderr)
    return None


def _parser() -> Parser:
    parser = Parser("align eval", epilog="example: align eval --suite bias --suite toxicity")
    parser.add_argument("--model", help="folder or Hub id (default: newest under runs/, else base)")
    parser.add_argument("--suite", action="append", required=True, help="suite, task or YAML file")
    parser.add_argument("--baseline", action="append", default=[], metavar="M", help="compare to M")
    parser.add_argument("--output", type=Path, help="folder for results.json and items/")
    parser.add_argument(
        "--limit", type=_limit, action="append", default=[], metavar="[TASK=]N",
        help="items of each task, or of one (repeatable), drawn with the seed",
    )  # fmt: skip
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
    output = options.output or (model.parent / "eval" if in_run else _folder(str(model)))
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
        **_shared(options),
    )
    print(json.dumps(found, indent=1, allow_nan=False) if options.json else sweep.table(found))
    print(f"sweep: {shown(output / sweep.FILE)}", file=sys.stderr)


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


def _limit(text: str) -> tuple[str, int]:
    """``"20"`` as ("", 20), ``"mmlu=20"`` as ("mmlu", 20)."""
    name, _, number = text.rpartition("=")
    return name, _positive(number)


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """The options that go to `evaluate` as they are, and the limits as it takes them."""
    names = ["num_fewshot", "seed", "batch_size", "toxicity_model", "allow_missing", "include_path"]
    limits = dict(options.limit)
    given = {name: getattr(options, name) for name in names}
    return {**given, "limit": limits.pop("", None), "limits": limits}


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


def _folder(model: str) -> Path:
    path = Path(model)
    name = "-".join(path.resolve().parts[-2:]) if path.exists() else model.replace("/", "--")
    return Path("runs") / "eval" / name


def _check_writable(folder: Path) -> None:
    """Find out before the work whether its results can be kept; nothing stays there.

    Raises:
        ConfigError: a file is in the way, or nothing can be written there.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            return
    except OSError as error:
        raise ConfigError(
            f"results can't go to {folder}: {there}: {error.strerror}; give another --output"
        ) from error


def _tax(models: list[str], outputs: list[Path]) -> dict[str, Any]:
    """The model against each baseline, paired by item."""
    from align.evaluation.tax import alignment_tax

    later = dict(zip(models[2:], outputs[2:], strict=True))
    tax: dict[str, Any] = alignment_tax(outputs[1], {**later, models[0]: outputs[0]})
    return tax


def _selftest(args: list[str]) -> None:
    parser = Parser("align eval selftest")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(args)
    from align.evaluation import replay

    replay.selftest(as_json=options.json)


def compare(args: list[str]) -> None:
    """``align compare``."""
    parser = Parser(
        "align compare", epilog="example: align compare runs/a/eval/ppo runs/b/eval/ppo"
    )
    parser.add_argument("a", type=Path, help="results.json, its folder, or a checkpoint of a run")
    parser.add_argument("b", type=Path, help="the other one; differences are B − A")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    from align.evaluation import compare as comparison

    found = comparison.compare(options.a, options.b)
    as_json = json.dumps(found, indent=1, allow_nan=False) if options.json else None
    print(as_json or comparison.table(found))
