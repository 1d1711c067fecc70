"""What is evaluated: a language model or a reward model, behind one method."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from align import checkpoint
from align.checkpoint.inspect import CheckpointInfo
from align.evaluation.lm import Job, PrefixLM
from align.evaluation.masked import MaskedModel
from align.evaluation.processes import Team
from align.evaluation.responses import Responses

ALONE = Team()
HALF = ("bfloat16", "float16")


class Request(NamedTuple):
    """One question to the model. settings None: score the continuation; else complete."""

    context: str
    continuation: str
    settings: dict[str, Any] | None = None
    sample: int = 0

    def key(self) -> tuple[str, tuple[Any, ...]]:
        """Kind and arguments, as `Responses` keeps them."""
        if self.settings is None:
            return "loglikelihood", (self.context, self.continuation)
        return "generate", (self.context, json.dumps(self.settings, sort_keys=True), self.sample)


class LanguageModel:
    """Log-likelihoods and completions of a causal language model."""

    kind = "causal"

    def __init__(self, lm: PrefixLM, responses: Responses, team: Team = ALONE) -> None:
        self.lm, self.responses, self.team = lm, responses, team
        self.lm.set_cache_hook(responses)

    def answer(self, requests: Sequence[Request]) -> list[Any]:
        """(log-likelihood, is greedy) or text of each request; known answers are not asked for.

        The model sees all requests and skips what is known or another process's: what it shares
        between them, and so every rounding, is the same however much there is left to do.
        """
        unique = {request.key(): request for request in reversed(requests)}
        asked = list(reversed(unique.values()))
        mine = [asked[i].key() for i in self.team.share([r.context for r in asked])]
        todo = {key for key in mine if self.responses.get(*key) is None}
        self.lm.skip = lambda kind, request: (kind, request) not in todo
        quiet = None if self.team.is_first else True
        with tqdm(total=len(todo), disable=quiet, leave=False, unit=" answers") as bar:
            self.responses.watch = bar.update
            self._score([r for r in asked if r.settings is None])
            self.lm.generate(
                [Job(r.context, r.settings, r.sample) for r in asked if r.settings is not None]
            )
            self.responses.watch = None
        for (kind, what), given in self.team.gather([(k, self.responses.get(*k)) for k in mine]):
            self.responses.learn(kind, what, given)
        return [self.responses.get(*request.key()) for request in requests]

    def _score(self, requests: list[Request]) -> None:
        from lm_eval.api.instance import Instance

        self.lm.loglikelihood(
            [Instance("loglikelihood", {}, (r.context, r.continuation), 0) for r in requests],
            disable_tqdm=True,
        )

    def rolling(self, text: str) -> float:
        """Log-likelihood of a whole text."""
        from lm_eval.api.instance import Instance

        known = self.responses.get("loglikelihood_rolling", (text,))
        if known is None:
            self.lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
            known = self.responses.get("loglikelihood_rolling", (text,))
        return float(known)


class RewardModel:
    """Scores of a reward model in the place of log-likelihoods."""

    kind = "reward"

    def __init__(
        self, scorer: Callable[..., Any], responses: Responses, team: Team = ALONE
    ) -> None:
        self.scorer, self.responses, self.team = scorer, responses, team

    def answer(self, requests: Sequence[Request]) -> list[Any]:
        """(score, False) of each completion: by the first process, and all if one is lacking.

        A score's last digits depend on its batch, so the batches are always the same ones.
        """
        asked = list({r.key(): r for r in requests}.values())
        if self.team.is_first and any(self.responses.get(*r.key()) is None for r in asked):
            scores = self.scorer([r.context for r in asked], [r.continuation for r in asked])
            for request, score in zip(asked, scores.tolist(), strict=True):
                self.responses.add_partial(*request.key(), (score, False))
        mine = asked if self.team.is_first else []
        known = [(request.key(), self.responses.get(*request.key())) for request in mine]
        for (kind, what), answer in self.team.gather(known):
            self.responses.learn(kind, what, answer)
        return [self.responses.get(*request.key()) for request in requests]


Subject = LanguageModel | RewardModel | MaskedModel


def load(
    name: str,
    info: CheckpointInfo,
    *,
    cache: Path | None,
    seed: int,
    batch_size: int | str,
    team: Team = ALONE,
) -> Subject:
    """The model of a checkpoint, with the answers that it gave before."""
    path = checkpoint.resolve(name)
    disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = info.dtype if device == "cuda" and info.dtype in HALF else "float32"
    fingerprint = {
        "device": device,
        "dtype": dtype,
        "weights": checkpoint.weights_sha256(path),
        "kind": info.kind,
        "seed": seed,
        "tokenizer": _files_sha256(info.path),
    }
    if info.num_labels is not None:
        from align.scoring import RewardScorer

        responses = Responses(cache, fingerprint, team.rank)
        return RewardModel(RewardScorer.load(path), responses, team)
    if info.kind == "masked":
        return MaskedModel.load(info.path, device, Responses(cache, fingerprint, team.rank))
    model, tokenizer = checkpoint.load_causal(path, dtype)[:2]
    lm = PrefixLM(
        model.to(device),
        tokenizer,
        eos_ids=checkpoint.eos_token_ids(model, tokenizer),
        batch_size=batch_size,
        seed=seed,
    )
    return LanguageModel(lm, Responses(cache, fingerprint, team.rank), team)


def _files_sha256(folder: Path) -> str:
    """Hash of everything beside the weights that decides an answer."""
    from align.evaluation.toxicity import sha256_of

    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    files = [folder / n for n in (*names, "chat_template.jinja", "adapter_config.json")]
    return sha256_of([file for file in files if file.is_file()])
