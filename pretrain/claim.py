"""A run's folder belongs to one run, and to one process group at a time."""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from omegaconf import OmegaConf

from data.disks import explain
from data.settings import UserError, require
from data.storage import take_lock
from pretrain.config import keys, plain_value, read_yaml
from pretrain.launch import RunConfig
from pretrain.ranks import on_main

_LOCK = ".lock"


@contextmanager
def claim(accelerator: Accelerator, config: Any) -> Generator[None]:
    """Hold the run's folder, with `config.yaml` in it, once it is sure that it is the same run.

    The lock is the main process's own, and ends with it however it ends.

    Raises:
        UserError: The folder is in use, holds a run of another configuration, cannot be made, or
            does not hold what `run.resume` asks for.
    """
    descriptor: int | None = None

    def take() -> None:
        nonlocal descriptor
        folder = Path(config.run.dir)
        path = folder / "config.yaml"
        if path.is_file() and (folder / "checkpoints").is_dir():
            _check_unchanged(config, path)
        _check_resume(config.run)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(folder)
            OmegaConf.save(OmegaConf.structured(config), path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        except OSError as error:
            raise UserError(f"run.dir={folder} cannot be written: {explain(error)}") from error

    try:
        on_main(accelerator, take)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int:
    """Take the folder's lock; it is given back when the descriptor is closed."""
    try:
        descriptor = take_lock(folder / _LOCK)
    except BlockingIOError as error:
        raise UserError(
            f"run.dir={folder} is in use by {error.args[0] or 'another process'}; "
            "wait for it, stop it, or name another folder"
        ) from error
    with suppress(OSError):  # only a message, for whoever comes second
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _check_unchanged(config: Any, path: Path) -> None:
    """Refuse to resume a run with keys that would change its result."""
    saved = read_yaml(str(path))
    asked = OmegaConf.structured(config)
    different = [
        f"{key.name} is {now}, not {before}"
        for key in keys(type(config))
        if key.changes_result
        and OmegaConf.select(saved, key.name, default=_ABSENT) is not _ABSENT
        and (now := plain_value(asked, key.name)) != (before := plain_value(saved, key.name))
    ]
    require(
        not different,
        f"run.dir={path.parent} holds a run of another configuration: {'; '.join(different)}; "
        "give the same keys to resume it, or another run.dir",
    )


_ABSENT = object()  # a key that was not known yet when the run began


def _check_resume(run: RunConfig) -> None:
    has_checkpoints = any(Path(run.dir).glob("checkpoints/step-*"))
    require(
        has_checkpoints or run.resume != "must",
        f"run.resume=must, but run.dir={run.dir} has no checkpoint; use run.resume=auto",
    )
    require(
        not has_checkpoints or run.resume != "never",
        f"run.resume=never, but run.dir={run.dir} has checkpoints; use another run.dir",
    )
