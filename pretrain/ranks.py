"""Collectives of a run's ranks: reduce, agree, and let one go first."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import Tensor

from data.disks import explain
from data.index.manifest import Manifest
from data.index.open import open_manifest, set_aside
from data.settings import RunStopped, UserError
from data.storage.locations import Storage

Result = TypeVar("Result")


def reduce(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Add a tensor over all ranks."""
    return cast(Tensor, accelerator.reduce(tensor, "sum"))


def on_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Run `work` on the main process alone; its result is everyone's.

    So is the `UserError` or the `RunStopped` that it raises: no rank waits for one that has left.
    """
    outcome: list[Result | UserError | RunStopped | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[0] = error
        except RunStopped as error:
            outcome[0] = RunStopped(str(error), error.status, is_agreed=True)
    broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError | RunStopped):
        raise outcome[0]
    return cast(Result, outcome[0])


def main_process_first(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Run `work` on the main process, then on the others; what stops it stops all."""
    results: list[Result] = []
    on_main(accelerator, lambda: results.append(work()))
    return results[0] if results else work()


def first_problem(work: Callable[[], object]) -> str | None:
    """Run `work` on all ranks, and tell all of them what the first one met that could not write.

    Returns:
        What the disk said and what helps, or None if all ranks are through.
    """
    problem = None
    try:
        work()
    except (OSError, SafetensorError) as error:
        problem = explain(error)
    problems: list[str | None] = gather_object([problem])
    return next((problem for problem in problems if problem is not None), None)


def open_shards(
    accelerator: Accelerator,
    spec: object,
    key: str,
    storage: Storage,
    fraction: float = 1.0,
    run: Path | None = None,
    val_ratio: float = 0.0,
) -> Manifest:
    """Open the shards that a configuration key names; the main process makes missing indexes.

    Raises:
        RunStopped: A rank sees other files than the main process, on all ranks.
    """
    manifest = main_process_first(
        accelerator, lambda: open_manifest(spec, key, storage, fraction, run, val_ratio)
    )
    contents: list[str] = gather_object([manifest.content])
    others = [rank for rank, content in enumerate(contents) if content != contents[0]]
    if others:
        raise RunStopped(
            f"{key}: rank {others[0]} sees other files than rank 0 ({len(others)} of "
            f"{len(contents)} ranks do); start again when nothing writes there, and all machines "
            "have the same files with the same times",
            is_agreed=True,
        )
    return manifest


def open_val(
    accelerator: Accelerator, train: Manifest | None, spec: object, key: str, storage: Storage
) -> Manifest:
    """Open the validation images: those that are named, else those that training leaves out.

    Args:
        accelerator: What `start` gave.
        train: The training images; None of a stream.
        spec: As for `open_shards`, or nothing.
        key: The configuration's key, for error texts.
        storage: How remote shards are read.
    """
    if spec or train is None:
        return open_shards(accelerator, spec, key, storage)
    return main_process_first(accelerator, lambda: set_aside(train))
