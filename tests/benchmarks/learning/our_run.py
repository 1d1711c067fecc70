"""The recipe of PPO, which also keeps the policy of every checkpoint, in `kept_beside` its run."""

import runpy
from pathlib import Path

from learning.trl_run import kept_beside

from align import ppo
from align.ppo.models import write_policy


class Keeping(ppo.PPOTrainer):
    """Writes policies and changes nothing."""

    def _save(self) -> None:
        folder = kept_beside(self.output_dir) / f"{self.progress.rollout:04d}"
        networks = self.accelerator.unwrap_model(self.networks)
        write_policy(folder, networks.policy, self.tokenizer)
        super()._save()


if __name__ == "__main__":
    ppo.PPOTrainer = Keeping
    recipe = Path(__file__).resolve().parents[3] / "recipes/ppo.py"
    runpy.run_path(str(recipe), run_name="__main__")
