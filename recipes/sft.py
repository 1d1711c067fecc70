"""Supervised fine-tuning: a base and instruction records go in, a chat model comes out.

    accelerate launch recipes/sft.py                                   the quickstart
    accelerate launch recipes/sft.py --learning_rate 5e-4              one field changed
    accelerate launch recipes/sft.py --config FILE.yaml                your own config
    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/sft.py     two processes

`--help` shows the fields people use first, `--help-all` all of them.
"""

import time

from align.config import SFTStage
from align.errors import run_main
from align.parsing import parse
from align.preflight import preflight


def main() -> None:
    """Parse, check, load, train, save."""
    started = time.time()
    config = parse(SFTStage)
    if preflight(config).finished:
        return

    from align import checkpoint, data, sft, training

    tokenizer = checkpoint.load_tokenizer(
        config.model_name_or_path,
        chat_template=config.chat_template,
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
    )
    model = checkpoint.load_policy(config, tokenizer)
    mixture = data.load_mixture(
        config.datasets,
        "prompt-completion",
        seed=config.seed,
        limit=config.dataset_limit,
        eval_fraction=config.eval_fraction,
        invalid_fraction=config.invalid_fraction,
    )
    trainer = sft.build_trainer(config, model, tokenizer, mixture)
    training.train(trainer, config, mixture.lineage())
    held_out = training.evaluate(trainer)

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
                extra={"held_out": held_out},
            )


if __name__ == "__main__":
    run_main(main)
