"""Measure a frozen encoder: ridge regression in closed form on a few labelled images a class.

    python finetune/fewshot.py [CONFIG.yaml] encoder.init=RUN data.train=... data.val=...

`encoder.init=none` measures an untrained encoder. Nothing is trained or tuned.
"""

import json
import statistics
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from timm.models.vision_transformer import VisionTransformer

from data.index.opening import open_manifest
from data.labelled import k_shot
from data.loader import Samples
from data.settings import run_entry_point
from data.stream import Share, evaluation_batches
from finetune.frozen import FewshotConfig
from pretrain.config import load, usage
from pretrain.encoder import image_size, make_encoder
from pretrain.evaluate import Features, check_features, extract, ridge_accuracy
from pretrain.launch import start_logging


def main(arguments: list[str]) -> None:
    """Run `python finetune/fewshot.py ARGUMENTS`."""
    if {"-h", "--help"} & set(arguments):
        print(usage(FewshotConfig, "python finetune/fewshot.py"))
        return
    config = load(FewshotConfig, arguments)
    start_logging(is_main_process=True)
    torch.manual_seed(0)  # the weights of an untrained encoder
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std)
    layer = config.fewshot.layer or len(encoder.blocks)
    check_features(encoder, layer, config.fewshot.pooling)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    train, val = (_features(config, encoder, layer, split) for split in ("train", "val"))

    result: dict[str, float | int | str] = {
        "encoder.init": config.encoder.init,
        "layer": layer,
        "pooling": config.fewshot.pooling,
        "num_seeds": config.fewshot.num_seeds,
    }
    print(
        f"{config.encoder.init}: block {layer}, {config.fewshot.pooling}, {len(val.labels)} images"
    )
    for shots in config.fewshot.shots:
        mean, deviation = _accuracy(config, train, val, shots)
        print(f"{shots:4d} images a class: {mean:.2%} +- {deviation:.2%}")
        result |= {f"accuracy/{shots}shot": mean, f"deviation/{shots}shot": deviation}
    if config.fewshot.output:
        Path(config.fewshot.output).write_text(json.dumps(result, indent=1) + "\n")


def _features(
    config: FewshotConfig, encoder: VisionTransformer, layer: int, split: str
) -> Features:
    data = config.data
    manifest = open_manifest(getattr(data, split), f"data.{split}", data.storage)
    samples = Samples(manifest, image_size(encoder), seed=0, labelled=True)
    batches = evaluation_batches(
        samples, Share(0, 1, config.fewshot.batch_size), config.data.workers
    )
    return extract(encoder, batches, layer, config.fewshot.pooling, f"features of data.{split}")


def _accuracy(
    config: FewshotConfig, train: Features, val: Features, shots: int
) -> tuple[float, float]:
    """Return the mean and the deviation over choices of the labelled images."""
    accuracies: list[float] = []
    for seed in range(config.fewshot.num_seeds):
        places = torch.from_numpy(k_shot(train.labels.numpy(), shots, seed))
        chosen = Features(train.values[places], train.labels[places])
        accuracies.append(ridge_accuracy(chosen, val, config.fewshot.penalty))
    return statistics.fmean(accuracies), statistics.pstdev(accuracies)


if __name__ == "__main__":
    run_entry_point(main)
