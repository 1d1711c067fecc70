"""What SFT and the reward model share around TRL's trainers: order of rows, one run, the end.

Only layer 2 and recipes import this module (it imports torch).
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from align.callbacks import InterruptCallback, Progress
from align.checkpoint.lineage import inputs
from align.checkpoint.lora import quiet_peft
from align.checkpoint.output import begin_run, finish_run
from align.checkpoint.save import disk_errors, try_saving, write_model
from align.errors import AlignError, Interrupted, RunError, is_main_process
from align.guards import Interrupts, saved_line

WINDOW = 50
"""Micro-batches whose rows are sorted by length together."""


# ---------------------------------------------------------------- order of rows


def row_order(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[int]:
    """The rows of an epoch: a function of its arguments only, so a resumed run needs no state.

    1. Shuffle the groups (rows that should share a batch; usually one row each).
    2. Cut into windows of `WINDOW` batches; sort each by length, so that batches need little
       padding.
    3. Fill batches; a group that doesn't fit in what is left of a batch waits for the next one.
    4. Shuffle the batches of each window; the only batch that is not full comes last.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)

    def shuffled(n: int) -> list[int]:
        return torch.randperm(n, generator=generator).tolist()

    waiting = [groups[i] for i in shuffled(len(groups))]  # 1
    order: list[int] = []
    rest: list[int] = []
    while waiting:
        window, waiting = _split(waiting, WINDOW * batch_size - len(rest))  # 2
        window.sort(key=lambda group: max(lengths[row] for row in group))
        batches = _fill([rest, *window] if rest else window, batch_size)  # 3
        rest = batches.pop() if len(batches[-1]) < batch_size else []
        order += [row for i in shuffled(len(batches)) for row in batches[i]]  # 4
    return order + rest


def _split(
    groups: list[Sequence[int]], rows: int
) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """The first groups that hold at least ``rows`` rows, and the others."""
    count = 0
    for i, group in enumerate(groups):
        count += len(group)
        if count >= rows:
            return groups[: i + 1], groups[i + 1 :]
    return groups, []


def _fill(groups: list[Sequence[int]], size: int) -> list[list[int]]:
    """Batches of exactly ``size`` rows (the last may be shorter), groups whole where possible."""
    if all(len(group) == 1 for group in groups):
        rows = [group[0] for group in groups]
        return [rows[i : i + size] for i in range(0, len(rows), size)]
    batches: list[list[int]] = [[]]
    waiting = list(groups)
    while waiting:
        room = size - len(batches[-1])
        group = waiting.pop(_fitting(waiting, room, near=4 * size))
        batches[-1] += group[:room]
        if group[room:]:
            waiting.insert(0, group[room:])
        if len(batches[-1]) == size and waiting:
            batches.append([])
    return batches


def _fitting(groups: list[Sequence[int]], room: int, near: int) -> int:
    """The largest group that fits among the next ones, else the first that fits, else the next."""
    fits = [i for i, group in enumerate(groups[:near]) if len(group) <= room]
    if fits:
        return max(fits, key=lambda i: (len(groups[i]), -i))
    return next((i for i, group in enumerate(groups) if len(group) <= room), 0)


class RowSampler(torch.utils.data.Sampler[int]):
    """`row_order` as the sampler that Trainer and accelerate ask for."""

    def __init__(
        self, groups: Sequence[Sequence[int]], lengths: Sequence[int], batch_size: int, seed: int
    ) -> None:
        self.groups, self.lengths = groups, lengths
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch, also of a resumed one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(row_order(self.groups, self.lengths, self.batch_size, self.seed, self.epoch))

    def __len__(self) -> int:
        return len(self.lengths)


class OurTrainer:
    """Mixed into TRL's trainers: our order of rows, no telemetry, no card of theirs."""

    groups: Sequence[Sequence[int]]
    lengths: Sequence[int]
    args: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> RowSampler:
        size = self.args.per_device_train_batch_size
        return RowSampler(self.groups, self.lengths, size, self.args.data_seed)

    def _send_telemetry(self) -> None:
        """TRL reports every trainer to its makers; align does not."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written from lineage and results, by `align.card`."""


# ---------------------------------------------------------------- arguments


def arguments(config: Any) -> dict[str, Any]:
    """What a stage's config says, under the names of TrainingArguments."""
    on_cpu = not torch.cuda.is_available()
    return {
        "output_dir": config.output_dir,
        "seed": config.seed,
        "data_seed": config.seed,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "activation_checkpointing": config.gradient_checkpointing,
        "bf16": config.bf16,
        "fp16": False,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "eval_strategy": "no",
        "report_to": config.report_to or "none",
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": True,
        "remove_unused_columns": True,
    }


def check_processes(accelerator: Any) -> None:
    """Stop when the launcher started more processes than accelerate found.

    Raises:
        RunError: each of them would believe to be the only one.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RunError(
            f"{launched} processes were launched but accelerate sees {accelerator.num_processes}; "
            "launch with --config_file recipes/accelerate/cpu.yaml (CPU) or ddp.yaml (GPUs)"
        )


# ---------------------------------------------------------------- one run


def train(trainer: Any, config: Any, data: Sequence[Mapping[str, Any]] = ()) -> None:
    """Train, from the newest complete checkpoint when resuming.

    Args:
        trainer: ours
        config: of the stage
        data: what lineage.json will say of the data

    Raises:
        ConfigError: the run to resume started from other weights or data.
        Interrupted: after a clean save.
        RunError: the loss became NaN or jumped.
    """
    check_processes(trainer.accelerator)
    tokenizer, interrupts = trainer.processing_class, Interrupts()
    trainer.add_callback(InterruptCallback(interrupts))
    with disk_errors(config.output_dir):
        if trainer.accelerator.is_main_process:
            try_saving(trainer.model, tokenizer)
        interrupts.install()
        try:
            newest = _on_rank_0(lambda: begin_run(config, inputs(config, data, tokenizer)))
            if config.resume:
                from_there = f"from {newest}" if newest else "nothing was saved yet; from the start"
                say(f"resume: {from_there}")
            set_seed(config.seed)
            with quiet_peft(), trackers_in(config.output_dir):
                trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        finally:
            interrupts.restore()
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, Progress):
                    callback.close()


@contextlib.contextmanager
def trained(trainer: Any) -> Iterator[None]:
    """What comes after the last step, of which there is a checkpoint.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(saved_line(trainer.state.global_step)) from error


def _on_rank_0(work: Callable[[], Any]) -> Any:
    """What ``work`` gives on rank 0, on every rank; its error is raised on all of them."""
    box: list[Any] = [None]
    if is_main_process():
        try:
            box = [work()]
        except AlignError as error:
            box = [error]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(box)
    if isinstance(box[0], AlignError):
        raise box[0]
    return box[0]


@contextlib.contextmanager
def trackers_in(output_dir: str) -> Iterator[None]:
    """Let wandb write below the run's folder instead of the current one; a WANDB_DIR that is set
    wins.
    """
    before = os.environ.get("WANDB_DIR")
    os.environ["WANDB_DIR"] = before or output_dir
    try:
        yield
    finally:
        if not before:
            del os.environ["WANDB_DIR"]


@contextlib.contextmanager
def saved(trainer: Any, config: Any) -> Iterator[Path | None]:
    """The folder with the final model, for reports and lineage.json; None on other ranks than 0.

    After the block its files move to output_dir; a run that is killed before resumes from its last
    checkpoint.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all ranks take part
    if not trainer.accelerator.is_main_process:
        yield None
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    out = Path(config.output_dir)
    with trained(trainer), disk_errors(out), finish_run(out) as folder:
        write_model(folder, model, trainer.processing_class, state)
        yield folder
    say(f"saved: {config.output_dir}")


def say(line: str) -> None:
    """A line on stderr from the one process that speaks."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


def evaluate(trainer: Any) -> dict[str, float]:
    """Loss on the held-out records, {} without any; also a line of metrics.jsonl."""
    if trainer.eval_dataset is None:
        return {}
    with trained(trainer):
        found = trainer.evaluate()
    say(f"held out: loss {found['eval_loss']:.4f}")
    return {k.removeprefix("eval_"): v for k, v in found.items() if k.startswith("eval_")}


def tokens_seen(trainer: Any) -> int:
    """Tokens that went through training, prompts included, padding not."""
    logged = [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row]
    return int(max(logged, default=0))
