"""Held-out score, KL from SFT and gold measure of a policy, on prompts that nobody trained on."""

import json
from pathlib import Path
from typing import Any

import torch
from learning.frontier import Verdict
from learning.trl_run import kept_beside

from align.checkpoint import eos_token_ids, load_causal
from align.ppo.generate import draws, generate
from align.ppo.models import Sequences
from align.ppo.rollout import Prompt, join, left_padded, texts, tokenize
from align.quickstart import gold, world
from align.scoring import RewardScorer

LENGTH = 48  # tokens, as the recipe has it
ROWS = 128


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

    def along(self, run: Path) -> list[Verdict]:
        """Of the policies that were kept along a run; each is judged once."""
        verdicts = []
        for policy in sorted(kept_beside(run).iterdir()):
            file = policy / "verdict.json"
            if not file.is_file():
                file.write_text(json.dumps(self(policy)._asdict()), "utf-8")
            verdicts.append(Verdict(**json.loads(file.read_text("utf-8"))))
        return verdicts

    @torch.no_grad()
    def __call__(self, policy: Path) -> Verdict:
        """Complete, score, compare with SFT, look at the truth."""
        lm = load_causal(str(policy)).model
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
