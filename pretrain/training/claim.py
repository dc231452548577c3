"""A run's folder belongs to one run, and to one process group at a time."""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.config import SHARDS_TYPE
from data.disks import explain, one_line
from data.listing.shards import absolute
from data.settings import RunStopped, UserError, require
from data.shards import atomic_write
from data.text import count
from pretrain.configuration.key import Key
from pretrain.configuration.layers import RUN_MARK, read_yaml
from pretrain.configuration.load import keys, plain_value, to_yaml
from pretrain.configuration.values import as_held, shown
from pretrain.ranks import on_main
from pretrain.records.checkpoint import newest_by_name
from pretrain.records.kinds import kind_of
from pretrain.records.lock import FINISHED, NAME, Holder, lock_run, read_holder, unlock_run
from pretrain.training.config import OptimConfig, RunConfig

_OWN = (
    "config.yaml",
    "metrics.jsonl",
    "bad_samples.jsonl",
    "starts.jsonl",
    "trace",
    "checkpoints",
    "encoder",
    "result.json",
)


@contextmanager
def claim(accelerator: Accelerator, config: Any) -> Generator[None]:
    """Hold the run's folder, with `config.yaml` in it, once it is sure that it is the same run.

    The lock is the main process's own, and ends with it however it ends.

    Raises:
        UserError: The folder is in use, holds a run of another configuration or files that no run
            wrote, cannot be made, or does not hold what `run.resume` asks for.
    """
    descriptor: int | None = None
    before: bytes | None = None
    former: Holder | None = None
    outcome = "ended by an error"
    folder = Path(config.run.dir)
    path = folder / "config.yaml"

    def take() -> None:
        nonlocal descriptor, before, former
        _check_own(folder)
        saved = read_record(folder)
        if saved is not None:
            _check_unchanged(config, saved)
        _check_resume(config.run)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            former = read_holder(folder)
            descriptor = _lock(folder)
            before = path.read_bytes() if path.exists() else None
            write_record(config)
        except OSError as error:
            raise UserError(f"run.dir={folder} cannot be written: {explain(error)}") from error

    try:
        on_main(accelerator, take)
        yield
        outcome = FINISHED
    except UserError as error:  # refused, as with other shards: the run there stays as it is
        outcome = one_line(error)
        if before is not None:
            outcome = former.text if former is not None else outcome
            with suppress(OSError), atomic_write(path) as file:
                file.write(before)
        raise
    except (RunStopped, KeyboardInterrupt) as error:
        outcome = f"stopped: {one_line(error)}"
        raise
    finally:
        if descriptor is not None:
            unlock_run(descriptor, outcome)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what a run with checkpoints was told, as plain values by group; else None.

    Raises:
        UserError: It is not valid YAML.
    """
    path = folder / "config.yaml"
    has_run = path.is_file() and (folder / "checkpoints").is_dir()
    return read_yaml(str(path)) if has_run else None


def write_record(config: Any) -> None:
    """Write what a run was told into its folder."""
    with atomic_write(Path(config.run.dir, "config.yaml")) as file:
        file.write((RUN_MARK + to_yaml(config, _absolute)).encode())


def _absolute(key: Key, value: Any) -> Any:
    """Name shards so that they are found from any folder."""
    if key.type != SHARDS_TYPE or value is None:
        return value
    return [absolute(item) for item in value] if isinstance(value, list) else absolute(value)


def _check_own(folder: Path) -> None:
    """Refuse to write over files that no run has written."""
    config = folder / "config.yaml"
    is_marked = config.is_file() and config.read_bytes().startswith(RUN_MARK.encode())
    if is_marked or (folder / NAME).exists() or any(folder.glob("checkpoints/step-*")):
        return
    for name in _OWN:
        require(
            not os.path.lexists(folder / name),
            f"run.dir={folder} holds {name}, which no run has written and this one would replace; "
            "move it elsewhere, or name another run.dir",
        )


def _lock(folder: Path) -> int:
    try:
        return lock_run(folder)
    except BlockingIOError as error:
        raise UserError(
            f"run.dir={folder} is in use by {error.args[0] or 'another process'}; "
            "wait for it, stop it, or name another folder"
        ) from error


def _check_unchanged(config: Any, saved: dict[str, Any]) -> None:
    """Refuse to resume a run with keys that would change its result."""
    groups = {key.name.split(".")[0] for key in keys(type(config))}
    kind = kind_of(saved)
    require(
        kind is None or kind == kind_of(groups),
        f"run.dir={config.run.dir} holds {kind and kind.value} run, and this one is not; name "
        "another run.dir",
    )
    length = list(_changes_of_length(config, saved))
    different = list(length)
    for key in keys(type(config)):
        if key.name in _LENGTH:
            continue
        group, name = key.name.split(".")
        now = plain_value(config, key.name)
        before = (saved.get(group) or {}).get(name, now)  # now, of a key that was not known yet
        is_same = now in (before, as_held(key, before)) or _is_same_path(key, now, before)
        if key.changes_result and not is_same:
            different.append(f"{key.name} was {shown(before)}, now {shown(now)}")
    remedy = "give the same keys to resume it, or another run.dir"
    folder = Path(config.run.dir)
    if length:
        remedy += (
            "; the length sets the learning rate of each step, so a run cannot be made longer: "
            f"encoder.init={folder} run.dir=NEW begins another from its weights"
        )
    require(
        not different,
        f"run.dir={folder} holds a run of another configuration: {'; '.join(different)}; {remedy}",
    )


_LENGTH = (
    *("run.minutes", "optim.epochs", "optim.steps"),
    *("optim.warmup_ratio", "optim.warmup_steps"),
)


def _changes_of_length(config: Any, saved: dict[str, Any]) -> Iterator[str]:
    """Say how the steps or the warm-up differ from a run's own, by the key that was asked for.

    However they were asked for, they are the same where they come to the same steps.
    """
    run, optim = saved.get("run") or {}, saved.get("optim") or {}
    now, steps = config.optim, optim.get("steps")
    if now.steps != steps:
        minutes, epochs = run.get("minutes"), optim.get("epochs")
        asked = {"run.minutes": (minutes, config.run.minutes), "optim.epochs": (epochs, now.epochs)}
        for key, (was, value) in asked.items():
            if value is not None:
                known = f"optim.steps was {steps}" if was is None else f"{key} was {shown(was)}"
                yield f"{known}, now {'' if was is not None else f'{key}='}{shown(value)}"
                return
        yield f"optim.steps was {steps}, now {now.steps}"
        return
    before = {key: optim.get(key) for key in ("steps", "warmup_steps", "warmup_ratio")}
    warmup = replace(OptimConfig(), **before).num_warmup_steps
    if now.num_warmup_steps != warmup:
        yield f"the warm-up was {count(warmup, 'step')}, now {now.num_warmup_steps:,}"


def _is_same_path(key: Key, now: Any, before: Any) -> bool:
    """Tell whether two values name one path, as `runs/x`, `runs/x/` and `/here/runs/x` do."""
    if not (key.is_path and isinstance(now, str) and isinstance(before, str)):
        return False
    return Path(now).absolute() == Path(before).absolute()


def check_found(run: RunConfig, checkpoint: Path | None) -> None:
    """Raise `UserError` where there is no checkpoint and `run.resume` says that there must be."""
    require(
        run.resume != "must" or checkpoint is not None,
        f"run.resume=must, but run.dir={run.dir} has no whole checkpoint; "
        "use run.resume=auto to start again from step 0",
    )


def _check_resume(run: RunConfig) -> None:
    """Look at the names alone: whether a checkpoint is whole, the resume itself finds out."""
    check_found(run, newest_by_name(Path(run.dir)))
    require(
        run.resume != "never" or newest_by_name(Path(run.dir)) is None,
        f"run.resume=never, but run.dir={run.dir} has checkpoints; use another run.dir",
    )
