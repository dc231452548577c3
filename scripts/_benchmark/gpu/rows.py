"""What is measured in a process of its own: a training step, a run from shards, the loader."""

from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pretrain.config import PretrainConfig
from pretrain.machine.apart import fork_workers
from pretrain.machine.held_memory import has_memory_counter, held_memory
from pretrain.machine.speed import clock
from pretrain.training.launch import start
from pretrain.training.memory import Need, count_state_bytes
from pretrain.training.utilisation import flops_per_image
from scripts._benchmark.gpu.forms import Form
from scripts._benchmark.loading import one_core
from scripts._benchmark.loading.sources import Images, stream
from scripts._benchmark.options import RunOptions
from scripts._benchmark.training import costs
from scripts._benchmark.training.our_step import make_model, step_of
from scripts._benchmark.training.run import measure_run
from scripts._benchmark.training.step_alternatives import ALTERNATIVES, timm
from scripts._benchmark.training.subject import Subject

OURS: dict[str, Callable[[Subject], PretrainConfig]] = {
    "paper": Subject.pretrain_config,
    "words": Subject.words_config,
}
# what may make a compiled step faster: the keys of run.* that it has
_CHANGES: dict[str, dict[str, Any]] = {
    "graphs": {"cuda_graphs": True},
    "bf16_residual": {"bf16_residual": True},
}
CHANGED = {f"{name}_{change}": (name, change) for change in _CHANGES for name in OURS}
TIMM, MAE = "timm", "transformers_mae"


def steps_of(subject: Subject) -> list[str]:
    """Name the steps of an encoder; what changes a compiled one is left out where none is."""
    return [*OURS, *(CHANGED if subject.compile else ()), TIMM, MAE]


def config_of(name: str, subject: Subject) -> PretrainConfig:
    """Return the configuration of one of our steps."""
    of, change = CHANGED.get(name, (name, None))
    config = OURS[of](subject)
    return replace(config, run=replace(config.run, **_CHANGES[change])) if change else config


class Cost(NamedTuple):
    """What a training step costs.

    Attributes:
        flops: Operations of an image, forward and backward, each once.
        peak_bytes: The most memory that its process held, what it held before left out; None where
            nobody can tell.
        counted_bytes: What `scripts/describe.py` counts, not compiled; None of others' steps.
    """

    flops: float
    peak_bytes: int | None
    counted_bytes: int | None


# ---------------------------------------------------------------- a step


class Step:
    """A training step on a batch that is ready, with what is known of its costs.

    Args:
        name: One of `steps_of` the subject.
        subject: What is trained.
    """

    def __init__(self, name: str, subject: Subject) -> None:
        self._size = subject.batch_size
        if name == MAE:
            import_module(ALTERNATIVES[MAE].module)  # before memory is counted
        accelerator = start(subject.run_config())
        torch.nn.Linear(8, 8)(torch.ones(8, 8)).sum().backward()  # loads what all passes need
        self._before = held_memory().now if has_memory_counter() else 0
        self._flops: float | None = None
        self._counted: int | None = None
        if name in (*OURS, *CHANGED):
            config = config_of(name, subject)
            model = make_model(config)
            self._flops = flops_per_image(accelerator, model, self._size)
            run = replace(config.run, compile=False, cuda_graphs=False)
            need = Need(model, run, config.optim, torch.device("cpu"), 1, self._size)
            self._counted = count_state_bytes(model, config.optim) + need.saved(self._size)
            self.work = step_of(model, config)
        else:
            self.work = timm(subject) if name == TIMM else ALTERNATIVES[name].make(subject)

    def warm_up(self) -> float:
        """Work until all is compiled and allocated; return the seconds that it took."""
        begin = clock()
        costs.warm_up(self.work)
        return clock() - begin

    def take_turn(self, seconds: float) -> float:
        """Return images a second."""
        return costs.take_turn(self.work, self._size, seconds)

    def cost(self) -> Cost:
        """Return its costs, at its end: others' operations are counted as they are computed."""
        peak = held_memory().peak - self._before if has_memory_counter() else None
        flops = self._flops or costs.count_flops(self.work) / self._size
        return Cost(flops, peak, self._counted)


# ---------------------------------------------------------------- runs, and the loader


def run_options(form: Form, subject: Subject, shards: list[str]) -> RunOptions:
    """Return the options of a run of one process."""
    lengths: dict[str, Any] = {"rounds": form.rounds, "seconds": form.seconds}
    return RunOptions(**asdict(subject), shards=shards, workers=form.workers, **lengths)


def measure_one(
    options: RunOptions, folder: Path, has_words: bool, is_resident: bool
) -> dict[str, Any]:
    """Return the record of a run from shards beside its own bare step; see `measure_run`."""
    fork_workers()
    kind = {"has_words": has_words, "is_resident": is_resident}
    return measure_run(options, options.shards, folder, **kind)


class Loader:
    """The training stream alone, in so many processes."""

    def __init__(self, images: Images, workers: int) -> None:
        fork_workers()
        self._workers = workers
        self._source = stream(images, images.shards, workers)
        next(self._source)

    def take_turn(self, seconds: float) -> float:
        """Return images a second."""
        turn = one_core.take_turn(self._source, seconds, self._workers)
        return turn.num_images / turn.seconds
