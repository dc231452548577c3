"""Speed, share of the matrix peak, and memory of a training step: ours, timm's and others'."""

import sys
from contextlib import ExitStack
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from pretrain.machine.apart import Apart, in_fresh_process
from pretrain.machine.held_memory import has_memory_counter
from pretrain.training.launch import start
from scripts._benchmark.installed import choose
from scripts._benchmark.options import Measured, StepOptions
from scripts._benchmark.records import Rounds, add_values, make_record, spread, table
from scripts._benchmark.training import costs
from scripts._benchmark.training.costs import MatrixPeak, Work
from scripts._benchmark.training.our_step import whole_step
from scripts._benchmark.training.step_alternatives import ALTERNATIVES, timm
from scripts._benchmark.training.subject import Subject

RATIOS = {
    "step_vs_timm": ("step", "timm"),
    "step_maskfree_vs_timm": ("maskfree", "timm"),
    "step_selective_vs_timm": ("selective", "timm"),
    **{f"step_vs_{name}": ("step", name) for name in ALTERNATIVES},
    # both leave the masked patches out of the encoder
    "step_maskfree_vs_transformers_mae": ("maskfree", "transformers_mae"),
}
MEMORY_RATIOS = {
    name.replace("step_", "memory_", 1): pair
    for name, pair in RATIOS.items()
    if pair[1] in ("timm", "vit_pytorch")
}
OURS: dict[str, dict[str, Any]] = {  # -> keywords of `Subject.pretrain_config`
    "step": {},
    "selective": {"grad_checkpointing": "selective"},
    "maskfree": {"is_maskfree": True},
}
_MAX_MEMORY_ROUNDS = 3


def measure(options: StepOptions, _: Path) -> Measured:
    """Measure steps on a batch that is ready, in turns.

    - `timm`: forward and backward of timm's encoder as it comes, on normalised float images.
    - `step`: `Trainer._step`, from uint8 images to new weights: corruption, targets, metrics, loss,
      backward, clip, optimizer.
    - `selective`: the same with `run.grad_checkpointing=selective`.
    - `maskfree`: `step` with `encoder.sees_masked=false` and three quarters masked.
    - those of `step_alternatives`.

    Each variant has a process of its own, started as a run is: it compiles its own code, and keeps
    its heap (`pretrain.machine.malloc`).

    Returns:
        The record and its table. `mfu` is a variant's images/s times the operations of an image,
        forward and backward, recomputed ones included, by the speed of a large square matrix
        product in the same round, precision and number of threads. `peak_memory_mib` is of fresh
        processes.

    Raises:
        UserError: The encoder or an alternative cannot be used.
    """
    subject = Subject.of(options)
    packages = {name: alternative.package for name, alternative in ALTERNATIVES.items()}
    names = ["timm", *OURS, *choose(options.against, packages)]
    with ExitStack() as running:
        steps = {
            name: running.enter_context(Apart(name, make_step, name, subject)) for name in names
        }
        flops = {name: step.call(costs.count_flops) for name, step in steps.items()}
        flops = {name: value / options.batch_size for name, value in flops.items()}
        speeds, shares, product = _measure_speeds(options, steps, flops)
    settings = asdict(options) | {"image_size": subject.side}
    record = make_record("step", settings, speeds, RATIOS)
    add_values(record, shares, {})
    if has_memory_counter():
        add_values(record, _measure_memory(options, names), MEMORY_RATIOS, is_cost=True)
    else:
        print("left out: peak memory, which is read from /proc or of a GPU", file=sys.stderr)
    record["matrix_gflop_per_second"] = spread(product)
    record["gflop_per_image"] = {name: value / 1e9 for name, value in flops.items()}
    return record, _table(record)


def _table(record: dict[str, Any]) -> str:
    product = record["matrix_gflop_per_second"]
    low, high = product["min"], product["max"]
    counts = [f"{name} {value:.3g}" for name, value in record["gflop_per_image"].items()]
    return "\n".join(
        [
            table(record),
            f"square matrices: {product['median']:.1f} ({low:.1f} to {high:.1f}) GFLOP/s",
            f"GFLOP an image, forward and backward: {', '.join(counts)}",
        ]
    )


def make_step(name: str, subject: Subject) -> Work:
    """Make a variant's step."""
    if name in OURS:
        return whole_step(subject.pretrain_config(**OURS[name]))
    return timm(subject) if name == "timm" else ALTERNATIVES[name].make(subject)


def _measure_speeds(
    options: StepOptions, steps: dict[str, Apart[Work]], flops: dict[str, float]
) -> tuple[Rounds, Rounds, list[float]]:
    """Return images a second, shares of the matrix peak, and that peak in GFLOP a second."""
    speeds, shares = Rounds(), Rounds("mfu")
    product: list[float] = []
    matrices = MatrixPeak(Subject.of(options), options.seconds)
    for step in steps.values():
        step.call(costs.warm_up)
    for _ in range(options.rounds):
        peak = matrices.measure()
        product.append(peak / 1e9)
        for name, step in steps.items():
            speed = step.call(costs.take_turn, options.batch_size, options.seconds)
            speeds.add(name, speed)
            shares.add(name, speed * flops[name] / peak)
    return speeds, shares, product


def _measure_memory(options: StepOptions, names: list[str]) -> Rounds:
    """Return each variant's peak memory, in turns of fresh processes."""
    peaks = Rounds("peak_memory_mib")
    for _ in range(min(options.rounds, _MAX_MEMORY_ROUNDS)):
        for name in names:
            peaks.add(name, in_fresh_process(_peak_of, name, Subject.of(options)))
    return peaks


def _peak_of(name: str, subject: Subject) -> float:
    """Return a variant's peak in MiB, what its libraries hold left out; in a fresh process."""
    if name in ALTERNATIVES:
        import_module(ALTERNATIVES[name].module)
    start(subject.run_config())
    return costs.peak_mib(lambda: make_step(name, subject))
