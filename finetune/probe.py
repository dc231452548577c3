"""Measure a frozen encoder: k-NN, a linear probe, and heads that choose what patches to read.

    python finetune/probe.py [CONFIG.yaml ...] encoder.init=RUN data.train=... ...

`encoder.like=RUN` measures it untrained. The linear probe is a logistic regression whose penalty
a tenth of `data.train` chooses; `data.val` chooses nothing. `probe.heads=[linear,attentive]` fits a
learned query over all patches, too. The images are read once, on all
processes, for all of `probe.layers` and `probe.poolings`; `probe.dir` (by default `RUN/probe`, and
`RUN/probe-untrained`) holds the table, `result.json`, the features, and `classifier`: the encoder
up to the best layer, with the linear probe as its head, for predict.py and export.py. The best
layer is that of the least loss on the tenth. Classes are matched by name where a `classes.txt` lies
beside the shards.
"""

import sys
from pathlib import Path
from shlex import quote

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.commands import name_next
from data.processes import importing
from data.settings import memory_errors, run_entry_point
from finetune.frozen.config import LinearConfig
from pretrain.configuration.load import load, usage


def main(arguments: list[str], command: str = "python finetune/probe.py") -> None:
    """Run `python finetune/probe.py ARGUMENTS`; `command` is what `--help` calls it."""
    if {"-h", "--help"} & set(arguments):
        print(usage(LinearConfig, command))
        return
    config = load(LinearConfig, arguments)
    with importing():  # here, so that no help and no mistake in a key waits for torch
        from finetune.frozen.judges import ClassifierJudge
        from finetune.frozen.measure import measure
        from finetune.linear import save_best

    judge = ClassifierJudge(config.probe, config.data.used)
    with memory_errors("a smaller probe.batch_size"):
        found = measure(config, judge, config.probe.about)
    if found is None:
        return
    print(found.text, end="")
    judge.say_edges(found.cells)
    folder = save_best(found, judge.probes)
    if folder is not None:
        place = quote(str(folder))
        print(f"\nthe linear probe is a classifier in {folder}")
        print(name_next(("predict", f"{place} IMAGES"), ("export", f"{place} CLASSIFIER")), end="")


if __name__ == "__main__":
    run_entry_point(main)
