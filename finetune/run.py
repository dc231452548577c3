"""Fine-tune an encoder on labelled shards. The same loop as pretraining, another objective.

    python finetune/run.py [CONFIG.yaml ...] encoder.init=RUN data.train=... data.val=...

On many GPUs it is `accelerate launch -q finetune/run.py ...`.
`encoder.like=RUN` in place of `encoder.init` trains the same encoder from scratch, and
`encoder.init=none encoder.name=NAME` any timm model. The same command again resumes. The last
validation's figures are written to `result.json`, with `run.keep_best=true` those of the best step,
which `RUN/encoder` then holds. A finished run that is started with another `data.val` is validated
on that.
"""

import json
import logging
import sys
import time
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.commands import name_next
from data.config import LabelledDataConfig
from data.processes import importing
from data.settings import memory_errors, require, run_entry_point
from data.text import count
from finetune.config import FinetuneConfig
from pretrain.configuration.load import load, usage

if TYPE_CHECKING:
    from finetune.metrics import Figures

logger = logging.getLogger(__name__)

_RESULT = "result.json"


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
        from data.labels.balance import class_weights, positive_weights
        from data.reading.overlap import check_apart
        from data.samples import Samples
        from data.stream import TrainingStream
        from finetune.backbone import check_start, flops_per_image, is_transformer, make_backbone
        from finetune.head import Classifier
        from finetune.linear import check_head_init, start_at_probe
        from finetune.load import read_labels
        from finetune.validate import Validation, judge_result
        from pretrain.encoder.extensions import say_what_timm_lacks
        from pretrain.encoder.facts import image_data, image_size, num_channels, resolve
        from pretrain.ranks import on_main, open_shards, open_val
        from pretrain.training.best import Best
        from pretrain.training.claim import claim
        from pretrain.training.contract import Evaluator
        from pretrain.training.launch import share, start
        from pretrain.training.length.rehearsal import fit_minutes
        from pretrain.training.length.settle import keep_passes, settle
        from pretrain.training.memory import check_fits
        from pretrain.training.trainer import Trainer

    # ---- the processes
    accelerator = start(config.run)
    data = config.data

    # ---- the classes
    folder = Path(config.run.dir)
    if not on_main(accelerator, lambda: (folder / _RESULT).is_file()):  # else: measured on others
        data.require_one("val")
    how = data.storage, data.fraction, folder, data.val_ratio
    train = open_shards(accelerator, data.train, "data.train", *how)
    val = open_val(accelerator, train, data.val, "data.val", data.storage)
    on_main(accelerator, lambda: check_apart(train, val, ("data.train", data.val_key)))
    labels, values = on_main(accelerator, lambda: read_labels(train, val, config))
    names = labels.names
    weights = None
    if data.balance and data.multi_label:
        weights = positive_weights(values, len(names), train.num_samples)
    elif data.balance:
        weights = class_weights(values, len(names))

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
    num_labels, multiple = len(names) if data.multi_label else None, 1 + config.mix.is_on
    part = check_fits(accelerator, config.run, config.optim, part, model, num_labels, multiple)
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
    best = Best(_figure(data), config.run.patience) if config.run.keep_best else None
    with claim(accelerator, config), memory_errors("a smaller run.micro_batch_size"):
        start_at_probe(accelerator, config, model, as_they_are(train, numbering=labels.train))
        evaluators = [Evaluator("val", config.run.eval_every, validation)]
        config = fit_minutes(accelerator, config, model, stream, evaluators, begun)
        if best is not None and config.run.eval_every >= config.optim.num_steps:
            logger.warning(
                "run.keep_best=true has no choice: run.eval_every=%d leaves one validation, after "
                "the last of %s; for one an epoch, set it to %d",
                config.run.eval_every,
                count(config.optim.num_steps, "step"),
                stream.steps_per_epoch,
            )
        trainer = Trainer.of(accelerator, config, model, stream, evaluators, best=best)
        figures = trainer.train()
        if trainer.load_best() or validation.figures is None:
            measured = validation(trainer.training.best)
            judge_result(measured, data.max_bad_ratio)
            figures |= {f"val/{name}": value for name, value in measured.figures.items()}
    if accelerator.is_main_process and validation.figures is not None:
        facts = {
            "encoder.init": config.encoder.init,
            "encoder.like": config.encoder.like,
            "steps": trainer.done,
            "epochs": trainer.done / stream.steps_per_epoch,
            **({"best_step": best.step} if best is not None else {}),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "flops_per_image": flops,
        }
        _report(Path(config.run.dir), validation.figures, names, facts)
        say_what_timm_lacks(encoder, f"{config.run.dir}/encoder")
    accelerator.end_training()
    return figures


def _figure(data: LabelledDataConfig) -> str:
    """Name the figure by which the best step is chosen."""
    if data.multi_label:
        return "val/map"
    return "val/accuracy_balanced" if data.balance else "val/accuracy"


def _report(folder: Path, figures: "Figures", names: list[str], facts: dict[str, Any]) -> None:
    """Write `result.json`, and say what counts most of it."""
    scalars = {key: value if isfinite(value) else None for key, value in figures.scalars.items()}
    result = {**scalars, **facts, "classes": names, **figures.details}
    (folder / _RESULT).write_text(json.dumps(result, indent=1) + "\n")
    main_figure = "accuracy" if "accuracy" in figures.scalars else "map"
    name = {"accuracy": "top-1 accuracy", "map": "mean average precision"}[main_figure]
    steps = count(facts["steps"], "step")
    when = f"after {steps}"
    if "best_step" in facts:
        when = f"at step {facts['best_step']}, the best by validation of {steps}"
    print(f"{name} {figures.scalars[main_figure]:.2%} {when}")
    print(f"the result is in {folder}/result.json, the classifier in {folder}/encoder")
    run = quote(str(folder))
    print(
        name_next(("predict", f"{run} IMAGES"), ("report", run), ("export", f"{run} BACKBONE")),
        end="",
    )


if __name__ == "__main__":
    run_entry_point(main)
