"""PPO from text prompts: the SFT policy learns what a reward model or a function scores high.

    accelerate launch recipes/ppo.py                                   the quickstart
    accelerate launch recipes/ppo.py --kl_coef 0.1                     one field changed
    accelerate launch recipes/ppo.py --config FILE.yaml                your own config
    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/ppo.py     two processes

`--help` shows the fields people use first, `--help-all` all of them.
"""

import time

from align.config import PPOStage
from align.errors import run_main
from align.parsing import parse
from align.preflight import preflight


def main() -> None:
    """Parse, check, load, train, save."""
    started = time.time()
    config = parse(PPOStage)
    if preflight(config).finished:
        return

    from align import checkpoint, data, ppo

    reward, gold = ppo.build_rewards(config), ppo.build_gold(config)
    tokenizer = checkpoint.load_tokenizer(
        config.model_name_or_path,
        chat_template=config.chat_template,
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
    )
    policy = checkpoint.load_policy(config, tokenizer)
    mixture = data.load_mixture(
        config.datasets,
        "prompt-only",
        seed=config.seed,
        limit=config.dataset_limit,
        eval_fraction=config.eval_fraction,
        invalid_fraction=config.invalid_fraction,
    )
    ptx = (
        data.load_mixture(
            config.ptx_datasets,
            "prompt-completion",
            seed=config.seed,
            limit=config.dataset_limit,
            invalid_fraction=config.invalid_fraction,
        )
        if config.ptx_datasets
        else None
    )
    data_used = [*mixture.lineage(), *(ptx.lineage() if ptx else [])]
    trainer = ppo.PPOTrainer(
        config,
        ppo.build_networks(config, policy, tokenizer, reward),
        tokenizer,
        reward,
        mixture.train,
        mixture.eval,
        eos_token_ids=checkpoint.eos_token_ids(policy, tokenizer),
        ptx_records=ptx.train if ptx else [],
        gold=gold,
    )
    trainer.train(data_used)

    trainer.finish(
        lambda folder: checkpoint.write_lineage(
            folder,
            stage=config.stage,
            config=config,
            parent=config.model_name_or_path,
            data=data_used,
            tokenizer=tokenizer,
            started=started,
            tokens=trainer.progress.tokens,
            extra=trainer.evidence(),
        ),
    )


if __name__ == "__main__":
    run_main(main)
