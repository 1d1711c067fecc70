"""Where scores come from: a reward model, Python functions, a server, or a sum of several.

A scorer is a callable ``(records, completions, ended) -> (B,)``: the prompt-only records, the
decoded completions, and whether each completion ended by itself.
"""

import copy
import importlib
import importlib.util
import math
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.errors import ConfigError, RunError
from align.ppo.remote import ask

Record = dict[str, Any]
Scorer = Callable[[Sequence[Record], Sequence[str], Sequence[bool]], Tensor]
TOKEN = "ALIGN_REWARD_TOKEN"  # environment variable with the bearer token of reward_url


class Scores(NamedTuple):
    """The weighted sum of all rewards and each reward before its weight, all ``(B,)``."""

    total: Tensor
    parts: dict[str, Tensor]


class Rewards:
    """A weighted sum of scorers that stops the run when a scorer misbehaves."""

    def __init__(self, scorers: dict[str, tuple[float, Scorer]]):
        self.scorers = scorers

    def __call__(
        self, records: Sequence[Record], completions: Sequence[str], ended: Sequence[bool]
    ) -> Scores:
        """Scores of completions, on the CPU.

        Raises:
            RunError: a scorer raised, hung, or returned something else than finite numbers, or
                their weighted sum is none.
        """
        parts = {
            name: checked(name, scorer(records, completions, ended), completions)
            for name, (_, scorer) in self.scorers.items()
        }
        total = torch.zeros(len(completions))
        for name, (weight, _) in self.scorers.items():
            total += weight * parts[name]
        if not total.isfinite().all():
            raise RunError(
                f"the weighted sum of {', '.join(parts)} is too large for float32; lower the "
                "weights or the scores"
            )
        return Scores(total, parts)


def checked(name: str, scores: Any, completions: Sequence[str]) -> Tensor:
    """Scores as a float32 ``(B,)`` on the CPU.

    Raises:
        RunError: not numbers, not one for each completion, or not finite.
    """
    try:
        tensor = torch.as_tensor(scores).detach().cpu()
        if tensor.is_complex():
            raise TypeError("they are complex")
        tensor = tensor.float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"reward {name} returned {scores!r:.80}: not a list of numbers ({error})"
        ) from error
    if tensor.shape != (len(completions),):
        raise RunError(
            f"reward {name} returned scores of shape {tuple(tensor.shape)} for {len(completions)} "
            "completions; it must return one number for each completion"
        )
    bad = (~tensor.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RunError(
            f"reward {name} returned {tensor[bad[0]].item()} for {len(bad)} of {len(completions)} "
            f"completions, first for {completions[bad[0]]!r:.80}; a score must be finite in float32"
        )
    return tensor


# ---------------------------------------------------------------- Python functions


def load_function(spec: str) -> Callable[..., Any]:
    """The function that ``module:function`` or ``file.py:function`` names.

    Raises:
        ConfigError: no such module, file or function, or one that can't be imported.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ConfigError(f"reward function {spec!r} is not of the form module:function")
    try:
        module = _module(where)
    except ImportError as error:
        raise ConfigError(
            f"reward function {spec!r}: can't import {where} ({error}); give module:function of an "
            "importable module, or path/to/file.py:function"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"reward function {spec!r}: importing {where} raised {type(error).__name__} ({error}); "
            "correct that file"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"reward function {spec!r}: {where} has no function {name}")
    return function


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        if str(Path.cwd()) not in sys.path:  # a launched script sees its own folder only
            sys.path.append(str(Path.cwd()))
        return importlib.import_module(where)
    if not Path(where).is_file():
        raise ImportError(f"no file {where}")
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_scorer(spec: str, timeout: float) -> Scorer:
    """A scorer from ``(prompts, completions, records) -> list[float]``.

    Raises:
        RunError (from the scorer): the function raised, or took longer than ``timeout`` seconds.
    """
    function = load_function(spec)

    def score(
        records: Sequence[Record], completions: Sequence[str], ended: Sequence[bool]
    ) -> Tensor:
        own = copy.deepcopy(list(records))  # what the function does to them stays with it
        prompts = [record["prompt"] for record in own]
        result = within(timeout, spec, lambda: function(prompts, list(completions), own))
        return checked(spec, result, completions)

    return score


def within(seconds: float, name: str, work: Callable[[], Any]) -> Any:
    """The result of ``work``, done in a daemon thread so that a hang can't hold the run.

    Raises:
        RunError: it raised, or took longer.
    """
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # handed over to the caller's thread
            done.put((None, error))

    threading.Thread(target=run, name=f"reward {name}", daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        raise RunError(
            f"reward {name} gave no scores within {seconds:g} s; make it faster or raise "
            "reward_timeout"
        ) from None
    if error is not None:
        raise RunError(f"reward {name} raised {type(error).__name__}: {error}") from error
    return result


# ---------------------------------------------------------------- a server


def url_scorer(url: str, timeout: float, retries: int) -> Scorer:
    """A scorer from a server: see *Rewards* in recipes/README.md for what is sent and answered.

    Raises:
        RunError (from the scorer): the server can't be reached, refuses, or answers something else
            than one finite number for each completion.
    """

    def score(
        records: Sequence[Record], completions: Sequence[str], ended: Sequence[bool]
    ) -> Tensor:
        body = {
            "prompts": [record["prompt"] for record in records],
            "completions": list(completions),
            "ended": list(ended),
        }
        answer = ask(
            url,
            body,
            timeout=timeout,
            retries=retries,
            token=TOKEN,
            advice="look at the log of the scorer behind reward_url, start it again or raise "
            "reward_timeout, then go on with --resume",
        )
        if not isinstance(answer, dict) or "scores" not in answer:
            raise RunError(
                f"reward {url} answered {answer!r:.80}; it must answer an object with scores: "
                '{"scores": [one number for each completion]}'
            )
        return checked(url, answer["scores"], completions)

    return score


# ---------------------------------------------------------------- shaping


class RunningScale:
    """Mean and spread of all scores so far, for ``normalize_scores``."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def update(self, count: float, mean: float, squares: float) -> None:
        """Merge a batch: its size, mean and sum of squared deviations (Chan et al. 1979)."""
        total, delta = self.count + count, mean - self.mean
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation, at least 1e-4."""
        return max(math.sqrt(self.squares / max(self.count, 1.0)), 1e-4)


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    lengths: Tensor,
    *,
    scale: RunningScale | None,
    clip: float | None,
    score_truncated: bool,
    missing_eos_penalty: float,
    length_penalty: float,
) -> Tensor:
    """Scores as PPO uses them: normalised, clipped, then minus the penalties; all ``(B,)``.

    The KL penalty comes later and is never clipped with them (2307.04964, section 5.3). Without
    ``score_truncated`` a completion that was cut keeps its penalties only: it was not over, and
    the value of its last state will stand for its score.
    """
    shaped = scores if scale is None else (scores - scale.mean) / scale.std
    shaped = shaped if clip is None else shaped.clamp(-clip, clip)
    shaped = shaped if score_truncated else torch.where(ended, shaped, 0.0)
    return shaped - missing_eos_penalty * (~ended) - length_penalty * lengths
