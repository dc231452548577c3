"""Fine-tune an encoder on labelled shards. The same loop as pretraining, another objective.

    python finetune/run.py [CONFIG.yaml ...] encoder.init=RUN data.train=... data.val=...

On many GPUs it is `accelerate launch -q finetune/run.py ...`.
`encoder.like=RUN` in place of `encoder.init` trains the same encoder from scratch, and
`encoder.init=none encoder.name=NAME` any timm model. The same command again resumes. The last
validation's figures are written to `result.json`, with `run.keep_best=true` those of the best step,
which `RUN/encoder` then holds. A finished run that is started with another `data.val` is validated
on that.
"""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.commands import name_next
from data.processes import importing
from data.settings import require, run_entry_point
from finetune.config import FinetuneConfig
from pretrain.configuration.load import load, usage


def main(arguments: list[str], command: str = "python finetune/run.py") -> None:
    """Run `python finetune/run.py ARGUMENTS`; `command` is what `--help` calls it."""
    if {"-h", "--help"} & set(arguments):
        print(usage(FinetuneConfig, command))
        return
    run(read(arguments))


def read(arguments: list[str]) -> FinetuneConfig:
    """Return what the arguments ask for."""
    return load(FinetuneConfig, arguments)


def run(config: FinetuneConfig) -> dict[str, float]:
    """Fine-tune an encoder, or go on where the run in `run.dir` stopped.

    Returns:
        The last record's figures, with the best step's of `val/`; of a run that was finished
        before, what is measured now.
    """
    begun = time.monotonic()
    with importing():  # here, so that no help and no mistake in a key waits for torch
        from data.images.augment import RandAugment
        from data.labels.labelled import label_splits
        from data.samples import Samples
        from data.stream import TrainingStream
        from finetune.backbone import check_start, flops_per_image, is_transformer, make_backbone
        from finetune.head import Classifier
        from finetune.linear import check_head_init, start_at_probe
        from finetune.tuning.splits import open_labelled
        from finetune.tuning.steps import report, tune
        from finetune.tuning.validate import Validation
        from pretrain.encoder.extensions import say_what_timm_lacks
        from pretrain.encoder.facts import image_data, image_size, num_channels, resolve
        from pretrain.training.launch import share, start
        from pretrain.training.length.settle import keep_passes, settle
        from pretrain.training.memory import check_fits

    # ---- the processes
    accelerator = start(config.run)
    data = config.data

    # ---- the classes
    read_labels = partial(
        label_splits, path=data.classes, fraction=data.fraction, is_multi_label=data.multi_label
    )
    train, val, labels, weights = open_labelled(accelerator, config, read_labels)
    names = labels.names

    # ---- how long a run they make
    config = settle(accelerator, config, train)
    data = config.data
    part = share(accelerator, config.run, config.optim)

    # ---- the model
    config = replace(config, encoder=check_start(config.encoder))
    encoder = make_backbone(config.encoder, data.size, data.mean, data.std, data.channels)
    flops = flops_per_image(encoder)
    model = Classifier(
        encoder,
        names,
        config.head,
        is_multi_label=data.multi_label,
        mix=config.mix,
        weights=weights,
    )
    check_head_init(config, model)
    config = resolve(config, encoder)
    require(
        config.run.parallel == "ddp" or is_transformer(encoder),
        f"run.parallel=fsdp needs a VisionTransformer, not {config.encoder.name}; use ddp",
    )
    require(
        not config.mix.is_on or part.micro_batch_size % 2 == 0,
        f"mix.* mixes pairs, and a forward pass takes {part.micro_batch_size} images on each "
        "process; choose optim.batch_size or run.micro_batch_size so that it is even",
    )
    part = check_fits(accelerator, config.run, config.optim, part, model, 1 + config.mix.is_on)
    config = keep_passes(config, part)

    # ---- the stream
    size, channels, seed = image_size(encoder), num_channels(encoder), config.run.seed
    multi = len(names) if data.multi_label else None
    mean = image_data(encoder)["mean"]
    augment = RandAugment(data.augment, size, mean) if data.augment else None
    samples = Samples(
        train,
        size,
        seed=seed,
        crop_area=data.crop_area,
        labelled=True,
        num_classes=multi,
        augment=augment,
        channels=channels,
        numbering=labels.train,
    )
    stream = TrainingStream(samples, config.optim.num_images, part, data.workers)
    as_they_are = partial(
        Samples, size=size, seed=seed, labelled=True, num_classes=multi, channels=channels
    )
    val_samples = as_they_are(val, numbering=labels.val)
    validation = Validation(accelerator, val_samples, part, data.workers, data.val_key)

    # ---- the steps
    def prepare() -> None:
        start_at_probe(accelerator, config, model, as_they_are(train, numbering=labels.train))

    ended = tune(accelerator, config, model, stream, validation, begun, prepare)
    if accelerator.is_main_process and validation.figures is not None:
        folder, facts = Path(config.run.dir), ended.facts | {"flops_per_image": flops}
        print(report(folder, validation.figures, names, facts))
        print(f"the result is in {folder}/result.json, the classifier in {folder}/encoder")
        run = quote(str(folder))
        todo = ("predict", f"{run} IMAGES"), ("report", run), ("export", f"{run} BACKBONE")
        print(name_next(*todo), end="")
        say_what_timm_lacks(encoder, f"{folder}/encoder")
    accelerator.end_training()
    return ended.figures


if __name__ == "__main__":
    run_entry_point(main)
