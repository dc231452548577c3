"""Pretrain an encoder by masked patch prediction. The story of a run, from top to bottom.

Four ways to start the same run:
    python pretrain/run.py configs/pretrain/cifar10.yaml run.dir=runs/mine
    python pretrain/run.py        (no argument at all: the demo)
    accelerate launch -q pretrain/run.py CONFIG.yaml key.sub=value        (many processes)
    torchrun --nproc-per-node 8 pretrain/run.py CONFIG.yaml key.sub=value
The same command again resumes.
"""

import sys
import time
from pathlib import Path
from shlex import quote

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.commands import name_next
from data.processes import importing
from data.settings import memory_errors, run_entry_point
from data.text import count
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load, usage

DEMO = Path(__file__).resolve().parents[1] / "configs/pretrain/demo.yaml"


def main(arguments: list[str], command: str = "python pretrain/run.py") -> None:
    """Run `python pretrain/run.py ARGUMENTS`; `command` is what `--help` calls it."""
    if {"-h", "--help"} & set(arguments):
        print(usage(PretrainConfig, command))
        return
    run(read(arguments), is_demo=not arguments)


def read(arguments: list[str]) -> PretrainConfig:
    """Return what the arguments ask for; without any, the demo."""
    return load(PretrainConfig, arguments or [str(DEMO)])


def run(config: PretrainConfig, *, is_demo: bool = False) -> dict[str, float]:
    """Pretrain an encoder, or go on where the run in `run.dir` stopped.

    Args:
        config: All that the run is told.
        is_demo: Whether the demo's shards are made first, where they are missing.

    Returns:
        The last record's figures; of a run that was finished before, what is measured now.
    """
    begun = time.monotonic()
    with importing():  # here, so that no help and no mistake in a key waits for torch
        from data.demo.tiles import make_demo_shards
        from pretrain.encoder import make_encoder
        from pretrain.encoder.extensions import say_what_timm_lacks
        from pretrain.encoder.facts import resolve
        from pretrain.inputs import keep_images, open_evaluators, open_images, open_stream
        from pretrain.objective.learn import learn_words
        from pretrain.objective.model import MaskedPatchModel
        from pretrain.pictures.illustrate import make_illustrator
        from pretrain.ranks import main_process_first
        from pretrain.training.claim import claim
        from pretrain.training.launch import share, start
        from pretrain.training.length.rehearsal import fit_minutes
        from pretrain.training.length.settle import keep_passes, settle
        from pretrain.training.memory import check_fits
        from pretrain.training.trainer import Trainer

    # ---- the processes
    accelerator = start(config.run)

    # ---- the images, and how long a run they make
    if is_demo:
        main_process_first(accelerator, make_demo_shards)
    images = open_images(accelerator, config)
    config = settle(accelerator, config, images)
    part = share(accelerator, config.run, config.optim)

    # ---- the model
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)
    config = resolve(config, encoder)
    make = keep_images(accelerator, config, images, encoder)
    part = check_fits(accelerator, config.run, config.optim, part, model)
    config = keep_passes(config, part)

    # ---- the stream
    stream = open_stream(images, config, encoder, part, make)

    # ---- what is measured in between
    evaluators = open_evaluators(
        accelerator,
        config,
        encoder,
        part,
        stream,
        lambda samples: make_illustrator(accelerator, samples, config.corruption),
    )

    # ---- the steps
    with claim(accelerator, config), memory_errors("a smaller run.micro_batch_size"):
        learn_words(accelerator, model.target, stream)
        config = fit_minutes(accelerator, config, model, stream, evaluators, begun)
        figures = Trainer.of(accelerator, config, model, stream, evaluators).train()
    if accelerator.is_main_process:
        done = count(config.optim.num_steps, "step")
        print(f"finished: {done}; the encoder is in {config.run.dir}/encoder")
        say_what_timm_lacks(encoder, f"{config.run.dir}/encoder")
        folder = quote(config.run.dir)
        labelled = f"encoder.init={folder} data.train=LABELLED data.val=LABELLED"
        print(
            name_next(("report", folder), ("probe", labelled), ("export", f"{folder} BACKBONE")),
            end="",
        )
    accelerator.end_training()
    return figures


if __name__ == "__main__":
    run_entry_point(main)
