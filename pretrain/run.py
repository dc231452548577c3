"""Pretrain an encoder by masked patch prediction. The story of a run, from top to bottom.

Four ways to start the same run:
    accelerate launch pretrain/run.py configs/pretrain/cifar10.yaml run.dir=runs/mine
    torchrun --nproc-per-node 8 pretrain/run.py CONFIG.yaml key.sub=value
    python pretrain/run.py CONFIG.yaml key.sub=value
    python pretrain/run.py        (no argument at all: the demo)
The same command again resumes.
"""

import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.demo import ensure_demo_shards
from data.loader import Samples
from data.sequential import open_sequential
from data.settings import run_entry_point
from data.stream import TrainingStream, evaluation_batches
from pretrain.claim import claim
from pretrain.config import PretrainConfig, load, resolve, usage
from pretrain.encoder import image_size, make_encoder, num_channels
from pretrain.figures.illustrate import make_illustrator
from pretrain.launch import open_shards, share, start
from pretrain.loop import Evaluator, Trainer, evaluate
from pretrain.model import MaskedPatchModel
from pretrain.probe import Probe
from pretrain.ranks import main_process_first

DEMO = Path(__file__).resolve().parents[1] / "configs/pretrain/demo.yaml"


def main(arguments: list[str]) -> None:
    """Run `python pretrain/run.py ARGUMENTS`."""
    if {"-h", "--help"} & set(arguments):
        print(usage(PretrainConfig, "accelerate launch pretrain/run.py"))
        return

    # ---- what is asked for
    config = load(PretrainConfig, arguments or [str(DEMO)])
    accelerator = start(config.run)
    part = share(accelerator, config.run, config.optim)

    # ---- the model
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)
    config = resolve(config, encoder)

    # ---- the stream
    main_process_first(accelerator, lambda: ensure_demo_shards(data.shards))
    size, channels = image_size(encoder), num_channels(encoder)
    seed, batch_size = config.run.seed, config.optim.batch_size
    if data.read == "sequential":
        stream = open_sequential(data, size, seed, batch_size, part, channels)
    else:
        shards = open_shards(accelerator, data.shards, "data.shards", data.storage, data.fraction)
        samples = Samples(shards, size, seed, data.crop_area, channels=channels)
        stream = TrainingStream(samples, batch_size, part, data.workers)

    # ---- what is measured in between
    evaluators: list[Evaluator] = []
    if data.val_shards:
        val_shards = open_shards(accelerator, data.val_shards, "data.val_shards", data.storage)
        val_samples = Samples(val_shards, size, seed, channels=channels)
        batches = partial(evaluation_batches, val_samples, part, data.workers)
        validate = partial(evaluate, accelerator, batches)
        illustrate = make_illustrator(accelerator, val_samples, config.corruption)
        evaluators.append(Evaluator("val", config.run.eval_every, validate, illustrate))
    if config.probe.train:
        probe = Probe(accelerator, config.probe, data, encoder, part)
        evaluators.append(Evaluator("probe", config.probe.every, probe))

    # ---- the steps
    with claim(accelerator, config):
        trainer = Trainer(accelerator, config.run, config.optim, model, stream, evaluators)
        trainer.train(data.trace, data.max_bad_ratio)
    if accelerator.is_main_process:
        print(f"finished: {config.optim.steps} steps; the encoder is in {config.run.dir}/encoder")
    accelerator.end_training()


if __name__ == "__main__":
    run_entry_point(main)
