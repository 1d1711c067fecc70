"""Which worked examples an item sees, where lm-eval's own samplers don't do."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler

from align.errors import EvalError


def check_shots(task: Any) -> None:
    """See that a task has as many worked examples as it is to show.

    Raises:
        EvalError: it has fewer, at least for one subject.
    """
    wanted, sampler = task.config.num_fewshot or 0, getattr(task, "sampler", None)
    if not wanted or sampler is None:
        return
    pool = list(sampler.df)
    have, of = len(pool), ""
    if isinstance(sampler, SubjectSampler):
        subjects = [str(row["subject"]) for row in pool]
        have, of = min((subjects.count(s), f" of {s}") for s in set(subjects))
    elif task.fewshot_cfg.split == task.config.test_split:
        have -= 1  # an item is never its own example
    if have < wanted:
        raise EvalError(
            f"{task.task_name} has {have} worked examples{of}, {wanted} are asked for; lower "
            "--num-fewshot (num_fewshot in the task's file), or add examples to its fewshot_split"
        )


class SubjectSampler(ContextSampler):
    """The first n worked examples of the item's own subject, as MMLU's authors show them."""

    def sample(
        self,
        n: int,
        eval_doc: dict[str, Any] | None = None,
        df: Sequence[dict[str, Any]] | None = None,
        **_: Any,
    ) -> Sequence[dict[str, Any]]:
        """Examples of ``eval_doc``'s subject in their order, never the item itself."""
        pool = list(df or self.df)
        if eval_doc is not None:
            pool = [d for d in pool if d["subject"] == eval_doc["subject"] and d != eval_doc]
        return pool[:n]
