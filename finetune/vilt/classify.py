"""Fine-tune an image-text model to classify images with sentences. The same loop, another head.

    python finetune/vilt/classify.py encoder.init=RUN data.train=SHARDS data.val=SHARDS run.dir=NEW

RUN is a run.dir of pretrain/vilt/run.py; `encoder.like=RUN` in place of `encoder.init` trains the
same from scratch. The sentence is KEY.txt, or a key of KEY.json (`data.caption_key`), the class
KEY.cls, or a key of KEY.json (`data.label_key`). Visual questions are
`data.caption_key=question data.label_key=answer data.max_classes=3129`. On many GPUs it is
`accelerate launch -q finetune/vilt/classify.py ...`. The same command again resumes. Figures and
the best step are as in finetune/run.py.
"""

import sys
import time
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import run_entry_point
from finetune.vilt.config import ViltFinetuneConfig
from pretrain.configuration.load import load, usage


def main(arguments: list[str], command: str = "python finetune/vilt/classify.py") -> None:
    """Run `python finetune/vilt/classify.py ARGUMENTS`; `command` is what `--help` calls it."""
    if {"-h", "--help"} & set(arguments):
        print(usage(ViltFinetuneConfig, command))
        return
    run(read(arguments))


def read(arguments: list[str]) -> ViltFinetuneConfig:
    """Return what the arguments ask for."""
    return load(ViltFinetuneConfig, arguments)


def run(config: ViltFinetuneConfig) -> dict[str, float]:
    """Fine-tune an image-text model, or go on where the run in `run.dir` stopped.

    Returns:
        The last record's figures, with the best step's of `val/`; of a run that was finished
        before, what is measured now.
    """
    begun = time.monotonic()
    with importing():  # here, so that no help and no mistake in a key waits for torch
        from data.captions.learn import warn_of_parts
        from data.captions.samples import CaptionedSamples
        from data.stream import TrainingStream
        from finetune.tuning.splits import open_labelled
        from finetune.tuning.steps import report, tune
        from finetune.tuning.validate import Validation
        from finetune.vilt.labels import read_labels
        from finetune.vilt.model import ViltClassifier
        from finetune.vilt.source import follow, open_source
        from pretrain.encoder import make_encoder
        from pretrain.encoder.facts import image_size, num_channels, patch_size, resolve
        from pretrain.machine.operations import count_flops
        from pretrain.ranks import on_main
        from pretrain.training.launch import share, start
        from pretrain.training.length.settle import keep_passes, settle
        from pretrain.training.memory import check_fits
        from pretrain.vilt.saved import begin_from
        from pretrain.vilt.vocabulary import keep_vocabulary

    # ---- the processes
    accelerator = start(config.run)

    # ---- what it begins from
    source = on_main(accelerator, lambda: open_source(config.encoder))
    vocabulary = source.vocabulary
    config = follow(config, source)

    # ---- the classes, and how long a run they make
    read_splits = partial(read_labels, data=config.data)
    train, val, labels, weights = open_labelled(accelerator, config, read_splits)
    caption_key = config.data.caption_key
    on_main(accelerator, lambda: warn_of_parts(vocabulary, train, caption_key, "data.train"))
    config = settle(accelerator, config, train)
    part = share(accelerator, config.run, config.optim)

    # ---- the model
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = ViltClassifier(config, encoder, vocabulary, labels.names, weights)
    begin_from(model, config.encoder.init)
    flops = count_flops(lambda: model.eval()(model.example_batch(1)))
    config = resolve(config, encoder)
    part = check_fits(accelerator, config.run, config.optim, part, model)
    config = keep_passes(config, part)

    # ---- the stream
    data, workers = config.data, config.data.workers
    make = partial(
        CaptionedSamples,
        size=image_size(encoder),
        seed=config.run.seed,
        vocabulary=vocabulary,
        config=data,
        patch_size=patch_size(encoder)[0],
        labelled=True,
        num_classes=len(labels.names) if data.multi_label else None,
        channels=num_channels(encoder),
        classes=labels.keyed,
    )
    samples = make(train, is_training=True, numbering=labels.train)
    stream = TrainingStream(samples, config.optim.num_images, part, workers)
    val_samples = make(val, is_training=False, numbering=labels.val)
    validation = Validation(accelerator, val_samples, part, workers, data.val_key)

    # ---- the steps
    folder = Path(config.run.dir)
    keep = partial(keep_vocabulary, accelerator, folder, vocabulary)
    ended = tune(accelerator, config, model, stream, validation, begun, keep)
    if accelerator.is_main_process and validation.figures is not None:
        facts = ended.facts | {"flops_per_image": flops}
        print(report(folder, validation.figures, labels.names, facts))
        print(f"the result is in {folder}/result.json, the classifier in {folder}")
    accelerator.end_training()
    return ended.figures


if __name__ == "__main__":
    run_entry_point(main)
