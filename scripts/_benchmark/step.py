"""Speed, share of the matrix peak, and memory of a training step: ours, timm's and others'."""

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from pretrain.training.launch import start
from scripts._benchmark import memory, our_step
from scripts._benchmark.apart import Apart, in_fresh_process
from scripts._benchmark.installed import choose
from scripts._benchmark.operations import MatrixPeak, count_flops
from scripts._benchmark.rounds import (
    Speeds,
    add_values,
    make_record,
    spread,
    table,
    take_turn,
    warm_up,
)
from scripts._benchmark.step_alternatives import ALTERNATIVES
from scripts._benchmark.subject import Step, Subject

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
_OURS = {
    "timm": our_step.timm,
    "step": our_step.step,
    "selective": our_step.selective,
    "maskfree": our_step.maskfree,
}
_MAX_MEMORY_ROUNDS = 3


@dataclass(frozen=True)
class StepOptions(Subject):
    """What is measured, and for how long.

    Attributes:
        against: Names of alternatives, apart by commas, or none; None: those installed.
        rounds: Turns of each variant.
        seconds: Of each turn.
    """

    against: str | None
    rounds: int
    seconds: float


def measure_step(options: StepOptions) -> dict[str, Any]:
    """Measure steps on a batch that is ready, in turns.

    - `timm`: forward and backward of timm's encoder as it comes, on normalised float images.
    - `step`: `Trainer._step`, from uint8 images to new weights: corruption, targets, figures, loss,
      backward, clip, optimizer.
    - `selective`: the same with `run.grad_checkpointing=selective`.
    - `maskfree`: `step` with `encoder.sees_masked=false` and three quarters masked.
    - those of `step_alternatives`.

    Each variant has a process of its own, started as a run is: it compiles its own code, and keeps
    its heap (`pretrain.machine.malloc`).

    Returns:
        The record. `mfu` is a variant's images/s times the operations of an image, forward and
        backward, those done twice included, by the speed of a large square matrix product in the
        same round, precision and number of threads. `peak_memory_mib` is of fresh processes.

    Raises:
        UserError: The encoder or an alternative cannot be used.
    """
    names = [*_OURS, *choose(options.against, _packages())]
    with ExitStack() as running:
        steps = {
            name: running.enter_context(Apart(name, _make_step, name, options)) for name in names
        }
        flops = {name: step.call(count_flops) / options.batch_size for name, step in steps.items()}
        speeds, shares, product = _measure_speeds(options, steps, flops)
    peaks = _measure_memory(options, names)
    settings = asdict(options) | {"image_size": options.side}
    record = make_record("step", settings, speeds, _among(RATIOS, names))
    add_values(record, shares, {})
    if peaks is not None:
        pairs = _among(MEMORY_RATIOS, names)
        add_values(record, peaks, pairs, lower_is_better=pairs)
    record["matrix_gflop_per_second"] = spread(product)
    record["gflop_per_image"] = {name: value / 1e9 for name, value in flops.items()}
    return record


def step_table(record: dict[str, Any]) -> str:
    """Lay a record of `measure_step` out for reading."""
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


def _packages() -> dict[str, Any]:
    return {name: alternative.package for name, alternative in ALTERNATIVES.items()}


def _make_step(name: str, options: StepOptions) -> Step:
    make = _OURS[name] if name in _OURS else ALTERNATIVES[name].make
    return make(options)


def _among(pairs: dict[str, tuple[str, str]], names: list[str]) -> dict[str, tuple[str, str]]:
    return {ratio: pair for ratio, pair in pairs.items() if set(pair) <= set(names)}


# ---------------------------------------------------------------- in turns


def _measure_speeds(
    options: StepOptions, steps: dict[str, Apart[Step]], flops: dict[str, float]
) -> tuple[Speeds, Speeds, list[float]]:
    """Return images a second, shares of the matrix peak, and that peak in GFLOP a second."""
    speeds, shares = Speeds(), Speeds("mfu")
    product: list[float] = []
    matrices = MatrixPeak(options, options.seconds)
    for step in steps.values():
        step.call(warm_up)
    for _ in range(options.rounds):
        peak = matrices.measure()
        product.append(peak / 1e9)
        for name, step in steps.items():
            speed = step.call(take_turn, options.batch_size, options.seconds)
            speeds.add(name, speed)
            shares.add(name, speed * flops[name] / peak)
    return speeds, shares, product


# ---------------------------------------------------------------- memory


def _measure_memory(options: StepOptions, names: list[str]) -> Speeds | None:
    """Return each variant's peak memory, or None where it cannot be read."""
    if not memory.is_possible():
        print("left out: peak memory, which is read from /proc or of a GPU", file=sys.stderr)
        return None
    peaks = Speeds("peak_memory_mib")
    for _ in range(min(options.rounds, _MAX_MEMORY_ROUNDS)):
        for name in names:
            peaks.add(name, in_fresh_process(peak_of, name, options))
    return peaks


def peak_of(name: str, options: StepOptions) -> float:
    """Return a variant's peak in MiB, what its libraries hold left out; in a fresh process."""
    if name in ALTERNATIVES:
        import_module(ALTERNATIVES[name].module)
    start(options.run_config())
    return memory.peak_mib(lambda: _make_step(name, options))
