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
        self.lines: dict[str, int] = {}  # written so far, by the name of the file
        self.config = {k: v for k, v in config.items() if isinstance(v, int | float | str | bool)}

    def start(self, rollout: int, lines: dict[str, int]) -> None:
        """Begin, or go on after ``rollout`` rollouts.

        Args:
            rollout: how many there were
            lines: how many of each file there were then; more are of a life that was lost
        """
        if self.accelerator.log_with:  # not before: they write into output_dir
            with redirect_stdout(sys.stderr):  # trackio talks
                home = os.environ.get("WANDB_DIR") or str(self.metrics_file.parent)
                self.accelerator.init_trackers(
                    "align-ppo", config=self.config, init_kwargs={"wandb": {"dir": home}}
                )
        if not self.main:
            return
        for file in (self.metrics_file, self.samples_file):
            file.parent.mkdir(parents=True, exist_ok=True)
            before = (
                file.read_bytes().splitlines(keepends=True) if rollout and file.is_file() else []
            )
            kept = before[: lines.get(file.name, 0)]
            beside = file.with_name(file.name + ".tmp")  # a kill must not take the lines before it
            beside.write_bytes(b"".join(kept))
            os.replace(beside, file)
            self.lines[file.name] = len(kept)
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
            self._append(self.metrics_file, [clean])

    def samples(self, rollout: int, rows: Sequence[dict[str, Any]], shown: int = 3) -> None:
        """Sample completions: all to samples.jsonl, the first few as a table on stderr."""
        if not self.main:
            return
        self._append(self.samples_file, [{"rollout": rollout, **row} for row in rows])
        self.say(f"held-out completions after {rollout} rollouts\n" + table(rows[:shown]))

    def _append(self, file: Path, rows: Sequence[dict[str, Any]]) -> None:
        with file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self.lines[file.name] = self.lines.get(file.name, 0) + len(rows)

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
