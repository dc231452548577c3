"""Measure a frozen encoder: ridge regression in closed form on a few labelled images a class.

    python finetune/fewshot.py [CONFIG.yaml ...] encoder.init=RUN data.train=... data.val=...

`encoder.like=RUN` measures it untrained. Nothing is trained or tuned. The images are read
once, on all processes of `accelerate launch`, for all of `fewshot.layers` and `fewshot.poolings`;
`fewshot.dir` (by default `RUN/fewshot`, and `RUN/fewshot-untrained`) holds the table, `result.json`
and the features. Classes are matched by name where a `classes.txt` lies beside the shards.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import memory_errors, run_entry_point
from finetune.config import FewshotConfig
from pretrain.configuration.load import load, usage


def main(arguments: list[str], command: str = "python finetune/fewshot.py") -> None:
    """Run `python finetune/fewshot.py ARGUMENTS`; `command` is what `--help` calls it."""
    if {"-h", "--help"} & set(arguments):
        print(usage(FewshotConfig, command))
        return
    config = load(FewshotConfig, arguments)
    with importing():  # here, so that no help and no mistake in a key waits for torch
        from finetune.frozen.judges import FewShotJudge
        from finetune.frozen.measure import measure

    shots = config.fewshot
    about = {"penalty": shots.penalty, "num_seeds": shots.num_seeds, "shots": list(shots.shots)}
    with memory_errors("a smaller fewshot.batch_size"):
        found = measure(config, FewShotJudge(shots, config.data.used), about)
    if found is not None:
        print(found.text, end="")


if __name__ == "__main__":
    run_entry_point(main)
