"""Speed of a training step as a configuration has it, against the same with other keys."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.machine.apart import Apart
from scripts._benchmark.options import Measured, VariantOptions
from scripts._benchmark.records import Rounds, make_record, table
from scripts._benchmark.training.costs import Work, take_turn, warm_up
from scripts._benchmark.training.our_step import whole_step

BASELINE = "as configured"


def measure(options: VariantOptions, _: Path) -> Measured:
    """Measure `Trainer._step` on a batch that is ready, in turns, each variant in its own process.

    Raises:
        UserError: A configuration is not right.
    """
    variants = {BASELINE: ""} | {text: text for text in options.variant}
    speeds = Rounds()
    with ExitStack() as running:
        steps = {
            name: running.enter_context(Apart(name, make_step, options, text.split()))
            for name, text in variants.items()
        }
        for step in steps.values():
            step.call(warm_up)
        for _turn in range(options.rounds):
            for name, step in steps.items():
                speeds.add(name, step.call(take_turn, options.batch_size, options.seconds))
    ratios = {text: (text, BASELINE) for text in options.variant}
    record = make_record("variants", asdict(options), speeds, ratios)
    return record, table(record)


def make_step(options: VariantOptions, overrides: list[str]) -> Work:
    """Make the step of a variant."""
    own = [f"run.threads={options.threads}", f"optim.batch_size={options.batch_size}"]
    config = [options.config, "data.shards=unread", *overrides, *own]
    return whole_step(load(PretrainConfig, config))
