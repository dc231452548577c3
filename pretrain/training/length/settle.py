"""How long a run is, and how many images a step takes: from what is asked, and from the images.

What is not asked of a run that has checkpoints is what it was: a resume needs no more than the
folder. The steps of a run are known before its first, since the learning rate of each follows.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate import Accelerator

from data.settings import UserError
from data.stream import Share
from data.text import count
from pretrain.machine.cores import loader_processes
from pretrain.ranks import on_main
from pretrain.training.claim import read_record
from pretrain.training.config import EPOCHS, OptimConfig
from pretrain.training.launch import local_ranks

logger = logging.getLogger(__name__)
Config = TypeVar("Config")

_BATCHES = 4096, 256  # images a step: the paper's; where an epoch has 100 steps or fewer, no more
_MANY, _FEW = 100, 10  # steps of an epoch


class Images(Protocol):
    """The images of a run."""

    @property
    def num_samples(self) -> int:
        """How many there are."""
        ...


def settle(accelerator: Accelerator, config: Config, images: Images | None) -> Config:
    """Fill in the batch, the loader processes and the steps, but for those of `run.minutes`.

    Args:
        accelerator: What `start` gave.
        config: The run's, with `run` and `optim`.
        images: Those that are trained on; None of a stream, which has no length.

    Raises:
        UserError: A stream has no epochs; or there are too many loader processes.
    """
    whole: Any = config
    workers = whole.data.workers
    if images is None and workers == "auto":
        workers = 0  # a stream may be one that a single process can read
    workers = loader_processes(workers, accelerator.device.type, local_ranks())
    whole = replace(whole, data=replace(whole.data, workers=workers))
    before = on_main(accelerator, lambda: read_record(Path(whole.run.dir)))
    if before is not None:
        whole = _as_before(whole, before, accelerator.num_processes)
    run, optim = whole.run, whole.optim
    said = list[str]()
    if optim.batch_size is None:
        number = None if images is None else images.num_samples
        optim = replace(optim, batch_size=usual_batch(number, accelerator.num_processes))
        said.append(f"optim.batch_size={optim.batch_size}, by the number of images")
    if (optim.steps, optim.epochs, run.minutes) == (None, None, None) and images is not None:
        optim = replace(optim, epochs=float(EPOCHS))
        said.append(f"optim.epochs={EPOCHS}, as nothing says how long the run is")
    if optim.steps is None and run.minutes is None:
        optim = replace(optim, steps=_steps(optim, images))
        said.append(f"so {count(optim.num_steps, 'step')}")
    if len(said) > 1 or optim.batch_size != whole.optim.batch_size:
        logger.info("%s", "; ".join(said))
    return replace(whole, optim=optim)


def keep_passes(config: Config, part: Share) -> Config:
    """Write down a micro-batch that was chosen by the memory, so that a resume has the same."""
    whole: Any = config
    own = whole.optim.num_images // part.world_size
    if whole.run.micro_batch_size or part.micro_batch_size == own:
        return config
    return replace(whole, run=replace(whole.run, micro_batch_size=part.micro_batch_size))


def usual_batch(num_images: int | None, num_processes: int) -> int:
    """Return the batch where none is asked for: a power of two, over all processes.

    An epoch of few images has 10 steps or more, or batches of one image a process; batches above
    256 images leave it 100.
    """
    largest, usual = _BATCHES
    if num_images is not None:
        fitting = max(min(usual, num_images // _FEW), min(largest, num_images // _MANY))
        usual = 1 << max(0, fitting.bit_length() - 1)
    return max(num_processes, usual // num_processes * num_processes)


def _steps(optim: OptimConfig, images: Images | None) -> int:
    if images is None:
        epochs = "" if optim.epochs is None else f"optim.epochs={optim.epochs:g}: "
        raise UserError(f"{epochs}data.read=sequential has no length; give optim.steps")
    assert optim.epochs is not None
    return max(1, round(optim.epochs * -(-images.num_samples // optim.num_images)))


def _as_before(config: Any, before: dict[str, Any], world: int) -> Any:
    """Take from a run's own record what is not asked otherwise."""
    run, optim = before.get("run") or {}, before.get("optim") or {}
    asked = (config.run.minutes, config.optim.epochs)
    is_silent = asked == (None, None) and config.optim.steps is None
    if is_silent or (asked != (None, None) and asked == (run.get("minutes"), optim.get("epochs"))):
        own = {"steps": optim.get("steps"), "epochs": optim.get("epochs")}
        config = replace(
            config,
            optim=replace(config.optim, **own),
            run=replace(config.run, minutes=run.get("minutes")),
        )
    if (config.optim.warmup_steps, config.optim.warmup_ratio) == (None, None):
        own = {key: optim.get(key) for key in ("warmup_steps", "warmup_ratio")}
        config = replace(config, optim=replace(config.optim, **own))
    if config.optim.batch_size is None:
        config = replace(config, optim=replace(config.optim, batch_size=optim.get("batch_size")))
    passes, batch = run.get("micro_batch_size"), config.optim.batch_size
    if passes and batch and not config.run.micro_batch_size and batch % (passes * world) == 0:
        config = replace(config, run=replace(config.run, micro_batch_size=passes))
    return config
