"""Fine-tune an encoder on labelled shards. The same loop as pretraining, another objective.

    accelerate launch finetune/run.py [CONFIG.yaml] encoder.init=RUN data.train=... data.val=...

`encoder.init=none` trains the same thing from scratch. The same command again resumes. The last
record's validation figures are written to `result.json`.
"""

import json
import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.labelled import count_classes, read_labels
from data.loader import Samples
from data.settings import run_entry_point
from data.stream import TrainingStream, evaluation_batches
from finetune.config import FinetuneConfig
from finetune.head import Classifier
from pretrain.claim import claim
from pretrain.config import load, resolve, usage
from pretrain.encoder import image_size, make_encoder
from pretrain.launch import open_shards, share, start
from pretrain.loop import Trainer
from pretrain.metrics import read_records
from pretrain.ranks import main_process_first


def main(arguments: list[str]) -> None:
    """Run `python finetune/run.py ARGUMENTS`."""
    if {"-h", "--help"} & set(arguments):
        print(usage(FinetuneConfig, "accelerate launch finetune/run.py"))
        return

    # ---- what is asked for
    config = load(FinetuneConfig, arguments)
    accelerator = start(config.run)
    part = share(accelerator, config.run, config.optim)
    data = config.data

    # ---- the classes
    train = open_shards(accelerator, data.train, "data.train", data.storage)
    val = open_shards(accelerator, data.val, "data.val", data.storage)
    num_classes = main_process_first(
        accelerator,
        lambda: count_classes(read_labels(train, "data.train"), read_labels(val, "data.val")),
    )

    # ---- the model
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std)
    model = Classifier(encoder, num_classes, config.head)
    config = resolve(config, encoder)

    # ---- the stream
    size, seed = image_size(encoder), config.run.seed
    samples = Samples(train, size, seed, data.crop_area, labelled=True)
    stream = TrainingStream(samples, config.optim.batch_size, part, data.workers)
    val_samples = Samples(val, size, seed, labelled=True)
    validation = partial(evaluation_batches, val_samples, part, data.workers)

    # ---- the steps
    with claim(accelerator, config):
        trainer = Trainer(accelerator, config.run, config.optim, model, stream, validation)
        trainer.train(data.trace, data.max_bad_ratio)
    if accelerator.is_main_process:
        _report(Path(config.run.dir), config.encoder.init)
    accelerator.end_training()


def _report(folder: Path, init: str) -> None:
    """Write `result.json` from the last record, and say it."""
    last = read_records(folder / "metrics.jsonl")[-1]
    result = {
        "accuracy/top1": last["val/accuracy"],
        "accuracy/top5": last["val/accuracy_top5"],
        "accuracy/balanced": last["val/accuracy_balanced"],
        "loss": last["val/loss"],
        "steps": last["step"],
        "epochs": last["epoch"],
        "encoder.init": init,
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"top-1 accuracy {result['accuracy/top1']:.2%} after {last['step']} steps")
    print(f"the result is in {folder}/result.json, the classifier in {folder}/encoder")


if __name__ == "__main__":
    run_entry_point(main)
