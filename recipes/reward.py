"""Reward model: an SFT checkpoint and preference pairs go in, a scorer comes out.

    accelerate launch recipes/reward.py                                the quickstart
    accelerate launch recipes/reward.py --learning_rate 5e-5           one field changed
    accelerate launch recipes/reward.py --config FILE.yaml             your own config
    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/reward.py  two processes

`--help` shows the fields people use first, `--help-all` all of them.
"""

import time

from align.config import RewardStage
from align.errors import run_main
from align.parsing import parse
from align.preflight import preflight


def main() -> None:
    """Parse, check, load, train, save, centre, report."""
    started = time.time()
    config = parse(RewardStage)
    if preflight(config).finished:
        return

    from align import checkpoint, data, reward, training

    tokenizer = checkpoint.load_tokenizer(
        config.model_name_or_path,
        chat_template=config.chat_template,
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
    )
    model = checkpoint.new_reward_model(config, tokenizer)
    mixture = data.load_mixture(
        config.datasets,
        "preference",
        seed=config.seed,
        limit=config.dataset_limit,
        eval_fraction=config.eval_fraction,
        invalid_fraction=config.invalid_fraction,
    )
    trainer = reward.build_trainer(config, model, tokenizer, mixture)
    training.train(trainer, config, mixture.lineage())

    with training.saved(trainer, config) as folder:
        if folder:
            checkpoint.write_lineage(
                folder,
                stage=config.stage,
                config=config,
                parent=config.model_name_or_path,
                data=mixture.lineage(),
                tokenizer=tokenizer,
                started=started,
                tokens=training.tokens_seen(trainer),
                extra=reward.evidence(folder, config, mixture),
            )


if __name__ == "__main__":
    run_main(main)
