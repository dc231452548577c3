"""Logging a run's records to tensorboard, wandb and others, through Accelerate.

A run that was killed repeats the steps past its checkpoint, and a tracker must not show them twice.
TensorBoard can forget them (`purge_step`), and wandb online drops steps that it has (it says so; we
have not tried): both get each record at once. A tracker that cannot remove a record (wandb offline,
all others) gets them at each checkpoint. Pictures go with the record of their step.
"""

import logging
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    TensorBoardTracker,
    WandBTracker,
    get_available_trackers,
)
from PIL import Image
from torch import Tensor

from data.disks import one_line
from data.settings import UserError, require
from data.shards import atomic_write
from pretrain.configuration.layers import read_yaml
from pretrain.ranks import on_main

logger = logging.getLogger(__name__)

PROJECT = "masked-patch-pretraining"  # unless WANDB_PROJECT names another
_WANDB_ID = "wandb-id"
_WANDB_FLUSH = (
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL"  # seconds; wandb passes over what it does not know
)
_IN_OUR_EXTRA = ("tensorboard", "wandb")


def check_names(names: Sequence[str]) -> None:
    """Raise `UserError` unless accelerate knows all of these trackers."""
    for name in names:
        require(
            name in LOGGER_TYPE_TO_CLASS,
            f"run.trackers={name} is no tracker that accelerate knows; take some of "
            f"{', '.join(sorted(LOGGER_TYPE_TO_CLASS))}",
        )


def check_installed(names: Sequence[str]) -> None:
    """Raise `UserError` unless all of these trackers' packages are installed."""
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        what = "-e '.[trackers]' here" if name in _IN_OUR_EXTRA else name
        require(
            name in installed,
            f"run.trackers={name}: its package is not installed; pip install {what}",
        )


def take_images(accelerator: Accelerator) -> bool:
    """Whether pictures are wanted: one of the trackers is tensorboard or wandb."""
    return bool({str(name) for name in accelerator.log_with} & {*_IN_OUR_EXTRA})


class _Told(NamedTuple):
    """A step's record and its pictures, uint8 (H, W, 3) by name."""

    record: dict[str, Any]
    images: Mapping[str, Tensor]


class Trackers:
    """The trackers of a run; only the main process has any.

    Args:
        accelerator: It knows which are asked for.
        folder: The run's, with `config.yaml` in it.
        step: The step that the run goes on from; what was told past it is no longer true.

    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self._accelerator = accelerator
        self._folder = folder
        self._waiting: list[_Told] = []  # since the last checkpoint

    def start(self, step: int) -> None:
        """Start them, to be told what follows `step`.

        Raises:
            UserError: One of them cannot be started.
        """
        if self._accelerator.log_with:
            on_main(self._accelerator, lambda: self._start(step))

    def log(self, record: dict[str, Any], images: Mapping[str, Tensor]) -> None:
        """Tell a step's record, as it goes to `metrics.jsonl`.

        Args:
            record: With its `step`.
            images: Pictures for tensorboard and wandb, uint8 (H, W, 3) by name.
        """
        if not self._accelerator.trackers:
            return
        entry = _Told(record, images)
        for tracker in self._list(is_told_at_once=True):
            self._tell(tracker, [entry])
        if self._list(is_told_at_once=False):
            self._waiting.append(entry)

    def commit(self) -> None:
        """Tell the others too: what was logged up to here will not be repeated."""
        for tracker in self._list(is_told_at_once=False):
            self._tell(tracker, self._waiting)
        self._waiting = []

    def close(self) -> None:
        """Let all of them write what they were told."""
        for tracker in [*self._accelerator.trackers]:
            self._try(tracker, tracker.finish)
        self._accelerator.trackers.clear()  # accelerate would finish them again

    def _start(self, step: int) -> None:
        accelerator, folder = self._accelerator, self._folder
        names = [str(name) for name in accelerator.log_with]
        options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": step + 1}}
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        try:
            if "wandb" in names:
                options["wandb"] = _wandb_options(folder)
            accelerator.init_trackers(project, init_kwargs=options)
            for tracker in accelerator.trackers:
                _tell_configuration(tracker, _plain_configuration(folder))
        except Exception as error:  # they raise nearly anything: no key, no network, no disk
            raise UserError(
                f"run.trackers={','.join(names)} cannot be started: {one_line(error)}; "
                "mend it, or leave the tracker out (metrics.jsonl holds the same figures)"
            ) from error

    def _list(self, *, is_told_at_once: bool) -> list[Any]:
        trackers: list[Any] = self._accelerator.trackers
        return [tracker for tracker in trackers if _can_forget(tracker) == is_told_at_once]

    def _tell(self, tracker: Any, steps: list[_Told]) -> None:
        # wandb keeps a step's values back until the next one, unless told that they are all
        options = {"commit": True} if isinstance(tracker, WandBTracker) else {}

        def work() -> None:
            for record, images in steps:
                _show(tracker, images, record["step"])
                tracker.log(_numbers(record), step=record["step"], **options)

        self._try(tracker, work)

    def _try(self, tracker: Any, work: Callable[[], object]) -> None:
        """Go on without a tracker that fails: the run is worth more."""
        try:
            work()
        except Exception as error:
            logger.warning(
                "run.trackers: %s failed (%s) and is told no more; metrics.jsonl has all",
                tracker.name,
                one_line(error),
            )
            self._accelerator.trackers.remove(tracker)


def _can_forget(tracker: Any) -> bool:
    if isinstance(tracker, WandBTracker):
        return not tracker.run.offline
    return tracker.name == "tensorboard"


def _show(tracker: Any, images: Mapping[str, Tensor], step: int) -> None:
    """Tell a step's pictures before its numbers: after them, wandb takes no more for the step."""
    if isinstance(tracker, TensorBoardTracker):
        batches = {name: image[None].numpy() for name, image in images.items()}
        tracker.log_images(batches, step=step, dataformats="NHWC")
    elif isinstance(tracker, WandBTracker):
        pictures = {name: [Image.fromarray(image.numpy())] for name, image in images.items()}
        tracker.log_images(pictures, step=step, commit=False)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Take what can be drawn; what is not finite is null in `metrics.jsonl`, and left out here."""
    return {
        name: value
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
    }


def _tell_configuration(tracker: Any, values: dict[str, bool | int | float | str]) -> None:
    """Tell a run's configuration; TensorBoard gets it as the hyper-parameters of the same run.

    Accelerate calls TensorBoard's `add_hparams`, which writes a second run beside the first.
    """
    if not isinstance(tracker, TensorBoardTracker):
        tracker.store_init_configuration(values)
        return
    writer: Any = tracker.writer
    hparams = sys.modules[type(writer).__module__].hparams  # torch's, or tensorboardX's
    for summary in hparams(values, {}):
        writer.file_writer.add_summary(summary)
    writer.flush()


def _plain_configuration(folder: Path) -> dict[str, bool | int | float | str]:
    """Read a run's configuration as flat keys and values that any tracker takes."""
    return dict(_flat(read_yaml(str(folder / "config.yaml")), ""))


def _flat(values: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            is_plain = isinstance(value, (bool, int, float, str))
            yield f"{prefix}{name}", value if is_plain else str(value)


def _wandb_options(folder: Path) -> dict[str, Any]:
    """Let wandb go on with the run that it knows, whose id is kept in the folder."""
    # else what wandb's own process was told in the last 15 s dies with the run
    os.environ.setdefault(_WANDB_FLUSH, "0.1")
    path = folder / _WANDB_ID
    if not path.is_file():
        with atomic_write(path) as file:
            file.write(secrets.token_hex(8).encode() + b"\n")  # from no generator of ours
    own = {"id": path.read_text().strip(), "name": folder.name, "dir": str(folder)}
    return {**own, "resume": "allow"}
