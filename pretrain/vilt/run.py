"""Pretrain a transformer on images and their captions (ViLT). The same loop, other objectives.

    python pretrain/vilt/run.py configs/pretrain/vilt-small.yaml data.shards=SHARDS run.dir=RUN

SHARDS hold images with captions: `KEY.jpg` and `KEY.txt`, a caption a line, or `KEY.json`, as
img2dataset writes them. On many GPUs it is `accelerate launch -q pretrain/vilt/run.py ...`.
The same command again resumes.
"""

import sys
import time
from functools import partial
from pathlib import Path
from shlex import quote

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import memory_errors, run_entry_point
from data.text import count
from pretrain.configuration.load import load, usage
from pretrain.vilt.config import ViltConfig


def main(arguments: list[str], command: str = "python pretrain/vilt/run.py") -> None:
    """Run `python pretrain/vilt/run.py ARGUMENTS`; `command` is what `--help` calls it."""
    if {"-h", "--help"} & set(arguments):
        print(usage(ViltConfig, command))
        return
    run(read(arguments))


def read(arguments: list[str]) -> ViltConfig:
    """Return what the arguments ask for."""
    return load(ViltConfig, arguments)


def run(config: ViltConfig) -> dict[str, float]:
    """Pretrain on images and captions, or go on where the run in `run.dir` stopped.

    Returns:
        The last record's figures; of a run that was finished before, what is measured now.
    """
    begun = time.monotonic()
    with importing():  # here, so that no help and no mistake in a key waits for torch
        from data.captions.check import check_captions
        from pretrain.encoder import make_encoder
        from pretrain.encoder.facts import resolve
        from pretrain.inputs import open_evaluators, open_images, open_stream
        from pretrain.ranks import on_main
        from pretrain.training.claim import claim
        from pretrain.training.launch import share, start
        from pretrain.training.length.rehearsal import fit_minutes
        from pretrain.training.length.settle import keep_passes, settle
        from pretrain.training.memory import check_fits
        from pretrain.training.trainer import Trainer
        from pretrain.vilt.building import make_model, make_samples
        from pretrain.vilt.pictures.illustrate import make_illustrator
        from pretrain.vilt.saved import begin_from
        from pretrain.vilt.vocabulary import keep_vocabulary, open_vocabulary

    # ---- the processes
    accelerator = start(config.run)

    # ---- the images and captions, and how long a run they make
    images = open_images(accelerator, config)
    assert images is not None, "data.read=sequential is refused"
    on_main(accelerator, lambda: check_captions(images, config.data, "data.shards"))
    vocabulary = open_vocabulary(accelerator, config, images)
    config = settle(accelerator, config, images)
    part = share(accelerator, config.run, config.optim)

    # ---- the model
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = make_model(config, encoder, vocabulary)
    begin_from(model, config.encoder.init)
    config = resolve(config, encoder)
    part = check_fits(accelerator, config.run, config.optim, part, model)
    config = keep_passes(config, part)

    # ---- the stream, and what is measured in between
    make = partial(make_samples, config, encoder, vocabulary)
    stream = open_stream(images, config, encoder, part, make)
    illustrator = partial(make_illustrator, accelerator, vocabulary)
    evaluators = open_evaluators(accelerator, config, encoder, part, stream, illustrator, make=make)

    # ---- the steps
    with claim(accelerator, config), memory_errors("a smaller run.micro_batch_size"):
        keep_vocabulary(accelerator, Path(config.run.dir), vocabulary)
        config = fit_minutes(accelerator, config, model, stream, evaluators, begun)
        figures = Trainer.of(accelerator, config, model, stream, evaluators).train()
    if accelerator.is_main_process:
        folder = quote(config.run.dir)
        done = count(config.optim.num_steps, "step")
        print(f"finished: {done}; the model is in {folder}, its image half in {folder}/encoder")
    accelerator.end_training()
    return figures


if __name__ == "__main__":
    run_entry_point(main)
