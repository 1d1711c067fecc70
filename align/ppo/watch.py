"""What a person sees of a run: progress bar, metrics.jsonl, trackers, sample completions."""

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tqdm import tqdm

from align.ppo.metrics import Metrics


def finite(value: Any) -> Any:
    """A number as strict JSON has it: NaN and infinity become null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Watch:
    """Writes metrics on the main process and nothing on the others."""

    def __init__(self, accelerator: Any, output_dir: Path, total: int, config: dict[str, Any]):
        self.accelerator, self.main = accelerator, accelerator.is_main_process
        self.metrics_file = output_dir / "metrics.jsonl"
        self.samples_file = output_dir / "samples.jsonl"
        self.total = total
        self.bar: Any = None
        self.config = {k: v for k, v in config.items() if isinstance(v, int | float | str | bool)}

    def start(self, rollout: int) -> None:
        """Begin, or go on after ``rollout`` rollouts: later lines are of a life that was lost."""
        if self.accelerator.log_with:  # not before: they write into output_dir
            with redirect_stdout(sys.stderr):  # trackio talks
                self.accelerator.init_trackers("align-ppo", config=self.config)
        if not self.main:
            return
        for file in (self.metrics_file, self.samples_file):
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = _lines_until(file, rollout) if rollout else []
            beside = file.with_name(file.name + ".tmp")  # a kill must not take the lines before it
            beside.write_text("".join(kept), encoding="utf-8")
            os.replace(beside, file)
        self.bar = tqdm(
            total=self.total, initial=rollout, desc="PPO", unit="rollout", file=sys.stderr,
            mininterval=0.5, dynamic_ncols=True,
        )  # fmt: skip

    def advance(self, score: float, kl: float) -> None:
        """One rollout is done."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"score {score:.3f} kl {kl:.3f}", refresh=False)
            self.bar.update()

    def log(self, metrics: Metrics, step: int) -> None:
        """One line of metrics.jsonl, and the trackers."""
        clean = {k: finite(v) for k, v in metrics.items()}
        if self.accelerator.log_with:
            told = {k: v for k, v in clean.items() if v is not None and k != "step"}
            with redirect_stdout(sys.stderr):
                self.accelerator.log(told, step=step)
        if self.main:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean, allow_nan=False) + "\n")

    def samples(self, rollout: int, rows: Sequence[dict[str, Any]], shown: int = 3) -> None:
        """Sample completions: all to samples.jsonl, the first few as a table on stderr."""
        if not self.main:
            return
        with self.samples_file.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"rollout": rollout, **row}, allow_nan=False) + "\n")
        self.say(f"held-out completions after {rollout} rollouts\n" + table(rows[:shown]))

    def say(self, text: str) -> None:
        """A line for people, above the progress bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar and the trackers."""
        if self.bar is not None:
            self.bar.close()
        with redirect_stdout(sys.stderr):
            for tracker in self.accelerator.trackers:  # end_training() would part processes too
                tracker.finish()


def table(rows: Sequence[dict[str, Any]], width: int = 44) -> str:
    """Prompt, completion, score and length of samples as aligned text."""

    def cell(text: str) -> str:
        flat = " ".join(text.split())
        return (flat if len(flat) <= width else flat[: width - 1] + "…").ljust(width)

    lines = [f"  {'prompt':{width}}  {'completion':{width}}   score  tokens"]
    for row in rows:
        lines.append(
            f"  {cell(prompt_text(row['prompt']))}  {cell(row['completion'])}"
            f"  {row['score']:6.2f}  {row['tokens']:6d}"
        )
    return "\n".join(lines)


def prompt_text(prompt: str | Sequence[dict[str, str]]) -> str:
    """A prompt on one line: of a conversation, what was said last."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _lines_until(file: Path, rollout: int) -> list[str]:
    """Lines of a .jsonl file up to a rollout; a line that a kill cut short is left out."""
    kept = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and row.get("rollout", 0) <= rollout:
            kept.append(line + "\n")
    return kept
