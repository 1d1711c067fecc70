"""Held-out score, KL from SFT and gold measure of a policy, on prompts that nobody trained on."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from align.checkpoint import eos_token_ids, load_causal
from align.evaluation import stats
from align.ppo.generate import draws, generate
from align.ppo.models import Sequences
from align.ppo.rollout import Prompt, join, left_padded, texts, tokenize
from align.quickstart import gold, world
from align.scoring import RewardScorer

LENGTH = 48  # tokens, as the recipe has it
ROWS = 128
HALVINGS = 6  # of the search for the α at which KL is equal


class Verdict(NamedTuple):
    """One number a prompt."""

    scores: list[float]
    kls: list[float]
    golds: list[float]

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def kl(self) -> float:
        """Nats a completion."""
        return sum(self.kls) / len(self.kls)

    def summary(self) -> dict[str, float]:
        right = sum(self.golds) / len(self.golds)
        return {"score": round(self.score, 4), "kl": round(self.kl, 4), "gold": round(right, 4)}


class Judge:
    """Samples every policy with the same random numbers for the same prompts.

    KL is exact at each state that the policy visits (a sum over the vocabulary), so it swings far
    less than a sample of log ratios.
    """

    def __init__(self, sft: Path, reward: Path, prompts: int) -> None:
        self.sft, self.tokenizer = load_causal(str(sft))
        self.scorer = RewardScorer.load(str(reward))
        records = world.prompt_records(world.World(), prompts, 1, "eval")
        self.prompts = tokenize(records, self.tokenizer, 80)
        self.uniforms = draws(0, 0, len(self.prompts), LENGTH)
        self.eos = eos_token_ids(self.sft, self.tokenizer)

    def __call__(self, policy: Path) -> Verdict:
        return self.of(load_causal(str(policy)).model)

    @torch.no_grad()
    def of(self, lm: Any) -> Verdict:
        """Complete, score, compare with SFT, look at the truth."""
        verdict = Verdict([], [], [])
        order = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts[i].ids))
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            self._batch(lm, [self.prompts[i] for i in rows], self.uniforms[rows], verdict)
        return verdict

    def _batch(
        self, lm: Any, prompts: list[Prompt], uniforms: torch.Tensor, verdict: Verdict
    ) -> None:
        pad = self.tokenizer.pad_token_id
        ids, mask = left_padded(prompts, pad, "cpu")
        done = generate(
            lm, ids, mask, uniforms, eos_token_ids=self.eos, pad_token_id=pad, temperature=1.0
        )
        said = texts(done, self.tokenizer)
        asked = [p.record["prompt"] for p in prompts]
        verdict.scores.extend(self.scorer(asked, said, done.ended.tolist()).tolist())
        verdict.golds.extend(gold.gold(asked, said, [p.record for p in prompts]))
        verdict.kls.extend(self._kl(lm, join(prompts, done, pad)).tolist())

    def _kl(self, lm: Any, sequences: Sequences) -> torch.Tensor:
        """(B,) nats a completion."""
        ours, theirs = (
            m(input_ids=sequences.ids, use_cache=False).logits.log_softmax(-1)
            for m in (lm, self.sft)
        )
        at_state = (ours.exp() * (ours - theirs)).sum(-1)  # (B, L)
        place = torch.arange(at_state.shape[1])[None]
        first = sequences.prompt_lengths[:, None] - 1
        inside = (place >= first) & (place < first + sequences.completion_lengths[:, None])
        return (at_state * inside).sum(1)

    # ------------------------------------------------------------ equal KL

    def at_equal_kl(self, ours: Path, theirs: Path) -> dict[str, Any]:
        """Both as they are, and both averaged with SFT back to one KL.

        That KL is half of the smaller one, so that both are averages: walking back alone would be
        an advantage (2309.06256).
        """
        models = {"ours": load_causal(str(ours)).model, "trl": load_causal(str(theirs)).model}
        ends = {name: self.of(model) for name, model in models.items()}
        kl = min(end.kl for end in ends.values()) / 2
        back = {name: self._walk_back(models[name], ends[name], kl) for name in models}
        at = {name: verdict for name, (_, verdict) in back.items()}
        return {
            **{name: verdict.summary() for name, verdict in ends.items()},
            "alpha": {name: round(alpha, 4) for name, (alpha, _) in back.items()},
            "at_equal_kl": {name: verdict.summary() for name, verdict in at.items()},
            "at": at,
        }

    def _walk_back(self, lm: Any, end: Verdict, kl: float) -> tuple[float, Verdict]:
        """The average (1 − α)·SFT + α·policy with a given KL, by halving."""
        low, high = 0.0, 1.0
        best = (1.0, end)
        weights = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
        start = self.sft.state_dict()
        for _ in range(HALVINGS):
            alpha = (low + high) / 2
            lm.load_state_dict({n: torch.lerp(start[n], w, alpha) for n, w in weights.items()})
            found = self.of(lm)
            best = min(best, (alpha, found), key=lambda pair: abs(pair[1].kl - kl))
            low, high = (alpha, high) if found.kl < kl else (low, alpha)
        return best

    def pooled(self, name: str, pairs: list[dict[str, Verdict]]) -> dict[str, Any]:
        """Ours minus TRL's, averaged over seeds, paired by prompt: value, ci95, n."""
        columns = []
        for pair in pairs:
            ours, theirs = (getattr(pair[who], f"{name}s") for who in ("ours", "trl"))
            columns.append([a - b for a, b in zip(ours, theirs, strict=True)])
        found = stats.mean_with_ci(
            [sum(column) / len(columns) for column in zip(*columns, strict=True)], kind="t"
        )
        assert found.ci95 is not None
        return {"value": found.value, "ci95": list(found.ci95), "n": found.n}
