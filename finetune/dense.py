"""Measure a frozen encoder's patch features by the class of each pixel (semantic segmentation).

    python finetune/dense.py [CONFIG.yaml ...] encoder.init=RUN data.train=... data.val=... \
        data.num_classes=K

Shards hold KEY.jpg with KEY.seg.png, a grey or palette PNG of the image's size whose values are
class numbers; `data.ignored` is no class. Names come from `data.classes`, or from a `classes.txt`
beside the shards. Three heads are fitted on the features of each of `dense.layers`: a linear layer
on patch tokens whose logits are enlarged bilinearly, logistic regression on patches, and k-NN of
patches. A tenth of `data.train` chooses their settings; `data.val` chooses nothing. The images are
read once, on all processes. `encoder.like=RUN` measures it untrained; `encoder.init=none` with
`encoder.name=resnet18` measures a CNN, whose feature maps are its layers. `dense.dir` (by default
`RUN/dense`, and `RUN/dense-untrained`) holds the table, `result.json`, `predictions.png`, and
`bad_samples.jsonl`, which names what could not be used.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import memory_errors, run_entry_point
from finetune.frozen.dense.config import SegmentationConfig
from pretrain.configuration.load import load, usage


def main(arguments: list[str], command: str = "python finetune/dense.py") -> None:
    """Run `python finetune/dense.py ARGUMENTS`; `command` is what `--help` calls it."""
    if {"-h", "--help"} & set(arguments):
        print(usage(SegmentationConfig, command))
        return
    config = load(SegmentationConfig, arguments)
    with importing():  # here, so that no help and no mistake in a key waits for torch
        from finetune.frozen.dense.measure import measure

    with memory_errors("a smaller dense.batch_size, or fewer dense.max_patches"):
        text = measure(config)
    if text is not None:
        print(text, end="")


if __name__ == "__main__":
    run_entry_point(main)
