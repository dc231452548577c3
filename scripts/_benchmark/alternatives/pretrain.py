"""Pretrain an encoder by another project's objective, all else as in pretrain/run.py.

    python scripts/benchmark.py pretrain CONFIG.yaml alternative.name=NAME key.sub=value

    NAME    mpp     vit-pytorch's masked patch prediction (extra [bench])
            mae     transformers' ViTMAEForPreTraining
            simmim  transformers' ViTForMaskedImageModeling

Data, encoder, optimizer, schedule, precision, checkpoints and records are those of our own
objective; the masks, the decoder and the loss are theirs. CONFIG.yaml is one of configs/pretrain
that has no keys of our objective, such as cifar10-mask-tokens.yaml. RUN/encoder is an encoder like
any other: finetune/*.py measure it. (MAE draws its weights anew, as its authors do, and
`encoder.like` of such a run begins as ours do.) The same command again resumes.
"""

import time

from data.devices import has_float64
from data.settings import memory_errors, require
from data.text import count
from pretrain.configuration.load import usage
from pretrain.encoder import make_encoder
from pretrain.encoder.extensions import say_what_timm_lacks
from pretrain.encoder.facts import resolve
from pretrain.inputs import open_evaluators, open_images, open_stream
from pretrain.training.claim import claim
from pretrain.training.launch import share, start
from pretrain.training.length.rehearsal import fit_minutes
from pretrain.training.length.settle import keep_passes, settle
from pretrain.training.memory import check_fits
from pretrain.training.trainer import Trainer
from scripts._benchmark.alternatives.config import AlternativePretrainConfig, load_alternative
from scripts._benchmark.alternatives.model import make_alternative

COMMAND = "python scripts/benchmark.py pretrain"


def pretrain(arguments: list[str]) -> None:
    """Run `python scripts/benchmark.py pretrain ARGUMENTS`."""
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n{usage(AlternativePretrainConfig, COMMAND)}")
        return

    # ---- what is asked for
    begun = time.monotonic()
    config = load_alternative(arguments)
    accelerator = start(config.run)
    require(
        has_float64(accelerator.device),
        f"alternative.name={config.alternative.name} needs float64, which {accelerator.device.type}"
        " has not; set ACCELERATE_USE_CPU=true",
    )

    # ---- the images, and how long a run they make
    images = open_images(accelerator, config)
    config = settle(accelerator, config, images)
    part = share(accelerator, config.run, config.optim)

    # ---- the model
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = make_alternative(config, encoder)
    config = resolve(config, encoder)
    part = check_fits(accelerator, config.run, config.optim, part, model)
    config = keep_passes(config, part)

    # ---- the stream
    stream = open_stream(images, config, encoder, part)

    # ---- what is measured in between
    evaluators = open_evaluators(accelerator, config, encoder, part, stream)

    # ---- the steps
    with claim(accelerator, config), memory_errors("a smaller run.micro_batch_size"):
        config = fit_minutes(accelerator, config, model, stream, evaluators, begun)
        Trainer.of(accelerator, config, model, stream, evaluators).train()
    if accelerator.is_main_process:
        done = count(config.optim.num_steps, "step")
        print(f"finished: {done}; the encoder is in {config.run.dir}/encoder")
        say_what_timm_lacks(encoder, f"{config.run.dir}/encoder")
    accelerator.end_training()
