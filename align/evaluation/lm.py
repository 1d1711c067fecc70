"""PrefixLM: lm-eval's requests answered with every shared prefix computed once.

The numbers are those of lm-eval's ``hf`` backend: same tokenisation, same truncation from the
left, same prefix token for an empty context. What differs is the work: a few-shot prefix is
computed once a task, a context once for all its choices, k samples of a prompt share its KV cache,
and finished completions leave the batch.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, resolve_max_length
from transformers import PreTrainedModel

from align.errors import EvalError
from align.evaluation import decoding, likelihoods
from align.evaluation.batching import (
    STEM,
    Batcher,
    Cost,
    by_shape,
    padded_length,
)
from align.evaluation.kv import is_shareable, takes
from align.evaluation.likelihoods import Encoded

MAX_COPIES = 32  # samples of one prompt that are generated together


class Job(NamedTuple):
    """One completion to generate; ``sample`` tells samples of the same prompt apart."""

    context: str
    settings: dict[str, Any]
    sample: int = 0

    def key(self) -> tuple[str, str, int]:
        """What its answer is kept under."""
        return self.context, json.dumps(self.settings, sort_keys=True), self.sample


class PrefixLM(TemplateLM):
    """A causal language model for lm-eval tasks.

    Args:
        model: a causal model in evaluation mode.
        tokenizer: its tokenizer.
        eos_ids: every token that ends a completion.
        batch_size: rows of one forward pass, or "auto": as many as a token budget allows, halved
            whenever memory runs out.
        seed: of sampled completions.
        max_length: context in tokens; default: what the model's config says.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        eos_ids: Sequence[int],
        batch_size: int | str = "auto",
        seed: int = 0,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.eos_ids, self.seed = frozenset(eos_ids), seed
        self._device = model.device
        self.max_length = max_length or resolve_max_length(model.config, tokenizer, default=2048)
        self.truncated = 0
        self._takes_positions = takes(model, "position_ids")
        self._takes_keep = takes(model, "logits_to_keep")
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.batches = Batcher(model.device, batch_size, vocabulary)
        self._shares: bool | None = None
        self.skip: Callable[[str, Any], bool] = lambda kind, request: False
        self._encoded: dict[str, list[int]] = {}
        self._prefix_text = tokenizer.decode(self.prefix_token_id)

    # ------------------------------------------------------------ what TemplateLM asks for

    @property
    def eot_token_id(self) -> int:
        """The token that separates documents."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return int(self.eot_token_id if bos is None else bos)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's request cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; special tokens as the tokenizer wants, but never a second BOS."""
        if add_special_tokens is None and string in self._encoded:
            return self._encoded[string]
        if add_special_tokens is None and self._starts_with_bos(string):
            add_special_tokens = False
        extra = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **extra))

    def _starts_with_bos(self, string: str) -> bool:
        return has_bos_prefix(string, self._prefix_text)

    def _encode_all(self, strings: Iterable[str]) -> None:
        """Tokenise many texts at once; `tok_encode` finds them until the next call."""
        plain = [s for s in dict.fromkeys(strings) if s and not self._starts_with_bos(s)]
        ids = self.tokenizer(plain)["input_ids"] if plain else []
        self._encoded = dict(zip(plain, ids, strict=True))

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, is it the greedy continuation) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        self._encode_all(text for a, b in pairs for text in (a.rstrip(), a + b))
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages as the text that the model was trained on."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's context."""
        windows: list[Encoded] = []
        counts = []
        for request in requests:
            parts = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [utils.make_disjoint_window(part) for part in parts]
            windows += [(None, list(a), list(b)) for a, b in pairs]
            counts.append(len(pairs))
        scores = iter(self._loglikelihood_tokens(windows))
        sums = [sum(next(scores)[0] for _ in range(n)) for n in counts]
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions; requests repeated by lm-eval get different samples."""
        seen: dict[str, int] = {}
        jobs = []
        for request in requests:
            context, settings = request.args
            key = json.dumps([context, settings], sort_keys=True)
            seen[key] = seen.get(key, -1) + 1
            jobs.append(Job(context, settings, seen[key]))
        return self.generate(jobs)

    # ------------------------------------------------------------ scoring

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Encoded], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, is it the greedy continuation) of each request."""
        return likelihoods.score(self, requests)

    def skipped(self, request: Encoded) -> bool:
        """True for what need not be answered."""
        return request[0] is not None and self.skip("loglikelihood", request[0])

    def can_share(self) -> bool:
        """True if the model's KV cache can be repeated row by row; found out once."""
        if self._shares is None:
            cache = self.forward([[self.prefix_token_id]], 0, None, None, keep=1)[1]
            self._shares = is_shareable(cache)
        return self._shares

    def trunk(self, tokens: tuple[int, ...]) -> Any:
        """KV cache (one row) of a shared prefix, None where there is nothing to share."""
        if not tokens or not self.can_share():
            return None
        return self.forward([tokens], 0, None, None, keep=1)[1]

    def forward(
        self,
        rows: Sequence[Sequence[int]],
        starts: int | list[int],
        cache: Any,
        past_mask: torch.Tensor | None,
        keep: int,
        length: int | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """(logits of each row's last ``keep`` tokens, cache) of right-padded rows after a cache.

        ``length``: what the rows are padded to; default: the longest.

        ``past_mask`` (B, S) is True where the cache holds a real token; None: everywhere. Padding
        on the right needs no mask, because attention is causal.
        """
        longest = length or max(map(len, rows))
        tokens = torch.tensor(
            [[*r, *([0] * (longest - len(r)))] for r in rows], device=self._device
        )
        extra: dict[str, Any] = {}
        if past_mask is not None:
            here = torch.ones(len(rows), longest, dtype=torch.bool, device=self._device)
            extra["attention_mask"] = torch.cat([past_mask, here], dim=1).long()
        if self._takes_positions:
            first = torch.tensor(starts, device=self._device).reshape(-1, 1)
            extra["position_ids"] = (first + torch.arange(longest, device=self._device)).expand(
                len(rows), longest
            )
        ends = torch.tensor([len(r) for r in rows], device=self._device)[:, None]
        places = (ends + torch.arange(-keep, 0, device=self._device)).clamp(min=0)  # (B, keep)
        with self._only_logits_at(places):
            out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **extra)
        return out.logits, out.past_key_values

    @contextmanager
    def _only_logits_at(self, places: torch.Tensor) -> Iterator[None]:
        """Let the model's last layer see the positions (B, K) only: it is the most expensive one.

        ``logits_to_keep`` takes the same positions for all rows, which padded rows don't have.
        """

        def select(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = args[0]  # (B, T, H)
            return (hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])),)

        handle = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            yield
        finally:
            handle.remove()

    # ------------------------------------------------------------ generating

    def generate(self, jobs: list[Job]) -> list[str]:
        """One completion a job. A sample depends on its prompt, seed and index alone."""
        texts = [""] * len(jobs)
        groups: dict[str, list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault(json.dumps(job.settings, sort_keys=True), []).append(i)
        for members in groups.values():
            settings = decoding.settings(jobs[members[0]].settings)
            prompts: dict[str, list[int]] = {}
            for i in members:
                prompts.setdefault(jobs[i].context, []).append(i)
            for i, text in self._generate_group(jobs, prompts, settings):
                texts[i] = text
        return texts

    def _generate_group(
        self, jobs: list[Job], prompts: dict[str, list[int]], settings: decoding.Settings
    ) -> list[tuple[int, str]]:
        """(job, text) of all jobs with the same settings; ``prompts``: context -> its jobs."""
        room = self.max_length - settings.max_new_tokens
        if room <= 0:
            raise EvalError(
                f"the task asks for {settings.max_new_tokens} new tokens, but the model's context "
                f"is {self.max_length}; lower max_gen_toks in the task's generation_kwargs"
            )
        encoded = {}
        self._encode_all(prompts)
        for context in prompts:
            tokens = self.tok_encode(context) or [self.prefix_token_id]
            self.truncated += len(tokens) > room
            encoded[context] = tokens[-room:]
        most = MAX_COPIES if self.batches.size == "auto" else int(self.batches.size)
        units = [
            (context, asked[at : at + most])
            for context, members in sorted(prompts.items(), key=lambda p: (-len(encoded[p[0]]), p))
            for asked in [[i for i in members if not self.skip("generate", jobs[i].key())]]
            for at in range(0, len(asked), most)
        ]
        if not units:
            return []
        shared = decoding.shared_prefix(list(encoded.values()))
        cache = self.trunk(tuple(encoded[units[0][0]][:shared]))
        head = decoding.Head(shared if cache is not None else 0, cache)
        done: list[tuple[int, str]] = []

        def run(batch: list[tuple[str, list[int]]], length: int) -> None:
            rows = [(context, i) for context, members in batch for i in members]
            texts = decoding.generate(
                self,
                head,
                [encoded[context] for context, _ in batch],
                [len(members) for _, members in batch],
                [decoding.seed_of(self.seed, c, jobs[i].sample) for c, i in rows],
                settings,
                length,
            )
            for (_, i), text in zip(rows, texts, strict=True):
                done.append((i, text))
                self.cache_hook.add_partial("generate", jobs[i].key(), text)

        def length_of(unit: tuple[str, list[int]]) -> int:
            return padded_length(len(encoded[unit[0]]) - head.length + 1, least=STEM)

        for length, same in by_shape(units, length_of):
            total = head.length + length + settings.max_new_tokens
            self.batches.run(same, partial(_decoding_cost, total), partial(run, length=length))
        return done


def _decoding_cost(length: int, unit: tuple[str, list[int]]) -> Cost:
    return Cost(len(unit[1]), length, 0, 1)
