"""Pretrain an encoder by another project's objective, all else as in pretrain/run.py.

    python scripts/pretrain_alternative.py CONFIG.yaml alternative.name=NAME key.sub=value

    NAME    mpp     vit-pytorch's masked patch prediction (extra [bench])
            mae     transformers' ViTMAEForPreTraining
            simmim  transformers' ViTForMaskedImageModeling

Data, encoder, optimizer, schedule, precision, checkpoints and records are those of our own
objective; the masks, the decoder and the loss are theirs. CONFIG.yaml is one of configs/pretrain
that has no keys of our objective, such as cifar10-mask-tokens.yaml. RUN/encoder is an encoder like
any other: finetune/*.py measure it. (MAE draws its weights anew, as its authors do, and
`encoder.like` of such a run begins as ours do.) The same command again resumes.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below, which take seconds

from data.devices import has_float64
from data.settings import memory_errors, require, run_entry_point
from data.text import count
from pretrain.configuration.load import usage
from pretrain.encoder import make_encoder
from pretrain.encoder.extensions import say_what_timm_lacks
from pretrain.encoder.facts import resolve
from pretrain.inputs import open_evaluators, open_stream
from pretrain.training.claim import claim
from pretrain.training.launch import share, start
from pretrain.training.memory import check_fits
from pretrain.training.trainer import Trainer
from scripts._benchmark.alternatives.config import AlternativePretrainConfig, load_alternative
from scripts._benchmark.alternatives.model import make_alternative


def main(arguments: list[str]) -> None:
    """Run `python scripts/pretrain_alternative.py ARGUMENTS`."""
    if {"-h", "--help"} & set(arguments):
        command = "python scripts/pretrain_alternative.py"
        print(f"{__doc__}\n{usage(AlternativePretrainConfig, command)}")
        return

    # ---- what is asked for
    config = load_alternative(arguments)
    accelerator = start(config.run)
    require(
        has_float64(accelerator.device),
        f"alternative.name={config.alternative.name} needs float64, which {accelerator.device.type}"
        " has not; set ACCELERATE_USE_CPU=true",
    )
    part = share(accelerator, config.run, config.optim)

    # ---- the model
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = make_alternative(config, encoder)
    config = resolve(config, encoder)
    check_fits(accelerator, config.run, config.optim, part, model)

    # ---- the stream
    stream = open_stream(accelerator, config, encoder, part)

    # ---- what is measured in between
    evaluators = open_evaluators(accelerator, config, encoder, part, stream)

    # ---- the steps
    with claim(accelerator, config), memory_errors("a smaller run.micro_batch_size"):
        trainer = Trainer(accelerator, config.run, config.optim, model, stream, evaluators)
        trainer.train(data.trace, data.max_bad_ratio)
    if accelerator.is_main_process:
        done = count(config.optim.steps, "step")
        print(f"finished: {done}; the encoder is in {config.run.dir}/encoder")
        say_what_timm_lacks(encoder, f"{config.run.dir}/encoder")
    accelerator.end_training()


if __name__ == "__main__":
    run_entry_point(main)
