"""Checkpoints: committed whole or not at all, checked by hash, free of pickle.

A commit writes a temporary folder, syncs it, lists every file's sha256 in `manifest.json`, renames
the folder, swaps the link `RUN/encoder` and only then deletes the oldest. A kill at any moment
leaves the newest complete checkpoint as it was. A run may hand on another step than its newest, the
best by validation: `state.json` of the newest names it, and its checkpoint stays.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.settings import UserError, require

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_UNFINISHED = ".writing-"
_PARTS = frozenset({"model.safetensors", "optimizer.safetensors", "state.json"})


def read_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's numbers.

    Raises:
        UserError: The file is not what `save` wrote.
    """
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_bytes())
        require(isinstance(state["step"], int), f"{folder}/state.json has no step")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/state.json cannot be read ({error}); delete {folder}") from error
    return state


# ---------------------------------------------------------------- committing


def folder_of(run: Path, step: int) -> Path:
    """Return where a run's checkpoint of a step is, if it has one."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


@contextmanager
def writing(run: Path, step: int) -> Generator[Path]:
    """Make the temporary folder in which a checkpoint is written; a failure takes it away again."""
    final = folder_of(run, step)
    folder = final.with_name(f"{_UNFINISHED}{final.name}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(temporary: Path, keep: int) -> Path:
    """Make a written folder the newest checkpoint, publish what it hands on, prune the oldest.

    Args:
        temporary: What `writing` gave, filled.
        keep: Number of checkpoints to keep; 0 keeps all.

    Returns:
        The checkpoint's folder.
    """
    hashes = {str(file.relative_to(temporary)): hash_file(file) for file in _files(temporary)}
    (temporary / MANIFEST).write_text(json.dumps(hashes, indent=1))
    for path in [*_files(temporary), *_folders(temporary)]:
        _sync(path)
    final = temporary.with_name(temporary.name.removeprefix(_UNFINISHED))
    if final.exists():  # incomplete, or `recover_newest` would have found it
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(final.parent)
    publish(final)
    _prune(checkpoints_of(final.parent.parent), keep)
    return final


def _prune(checkpoints: list[Path], keep: int) -> None:
    """Delete all but the newest, and the best that each of those names."""
    kept = checkpoints[: keep or None]
    needed = {*kept, *map(handed_on, kept)}
    for old in checkpoints:
        if old not in needed:
            shutil.rmtree(old)


def handed_on(checkpoint: Path) -> Path:
    """Return the checkpoint that a run hands on, given its newest: the best, if it keeps one.

    It is the newest itself where the best is gone.
    """
    with suppress(UserError, OSError):
        step = (read_state(checkpoint).get("best") or {"step": 0})["step"]
        best = folder_of(checkpoint.parent.parent, step)
        return best if best.is_dir() else checkpoint
    return checkpoint


def publish(newest: Path) -> None:
    """Point the link `RUN/encoder` at the encoder that is handed on, in one atomic rename.

    A disk that knows no links gets a copy, with a file that says so. It is not there for a moment
    while it is replaced; a resume makes it again.
    """
    checkpoint, run = handed_on(newest), newest.parent.parent
    link, encoder = run / ".encoder-link", run / "encoder"
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(Path("checkpoints", checkpoint.name, "encoder"))
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _publish_copy(checkpoint, encoder)
    else:
        if _is_copy(encoder):  # of a run that was moved here
            shutil.rmtree(encoder)
        link.replace(encoder)
    _sync(run)


# FAT says EPERM, network disks one of the others
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO)
_COPY = ".copy-of"  # the name of the file that tells our copy from a folder of the user's


def _publish_copy(checkpoint: Path, encoder: Path) -> None:
    new = encoder.with_name(".encoder-copy")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(checkpoint / "encoder", new)
    (new / _COPY).write_text(f"{checkpoint.name}\n")
    for path in [*_files(new), *_folders(new)]:
        _sync(path)
    if _is_copy(encoder):
        shutil.rmtree(encoder)
    new.rename(encoder)


def _is_copy(encoder: Path) -> bool:
    return not encoder.is_symlink() and (encoder / _COPY).is_file()


def recover_newest(run: Path) -> Path | None:
    """Return the newest checkpoint whose files are all as its manifest says, or None.

    What a killed commit left behind is deleted; a damaged checkpoint is named and passed over.

    Raises:
        UserError: `RUN/encoder` is no link, as after a copy that followed links.
    """
    encoder = run / "encoder"
    require(
        encoder.is_symlink() or not encoder.exists() or _is_copy(encoder),
        f"{encoder} is no link into the newest checkpoint, and no copy that the run has made, as "
        "after a copy of the run that followed links; delete it, and it will be made again",
    )
    for left_over in (run / "checkpoints").glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over)
    return newest_intact(run)


def newest_intact(run: Path) -> Path | None:
    """Do as `recover_newest`, but delete nothing: safe while the run goes on."""
    for checkpoint in checkpoints_of(run):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("%s is damaged (%s); trying the one before it", checkpoint, damage)
    return None


def is_intact(checkpoint: Path) -> bool:
    """Tell whether a checkpoint is there, its files as its manifest says."""
    return _damage(checkpoint) is None


def has_intact(run: Path) -> bool:
    """Tell whether a checkpoint is intact. Damaged ones are named if none is.

    Otherwise `recover_newest`, which a resume calls next, would name them a second time.
    """
    whole = any(is_intact(checkpoint) for checkpoint in checkpoints_of(run))
    return whole or newest_intact(run) is not None


def newest_by_name(run: Path) -> Path | None:
    """Return the newest checkpoint by its name alone, or None."""
    return next(iter(checkpoints_of(run)), None)


def find_handed_on(run: Path) -> Path:
    """Return the checkpoint whose weights a run hands on, by its name alone.

    Raises:
        UserError: The run has none yet.
    """
    newest = newest_by_name(run)
    if newest is None:
        raise UserError(f"{run} has no checkpoint yet; wait for its first")
    return handed_on(newest)


def check_constants(
    checkpoint: Path,
    state: Mapping[str, Any],
    constants: Mapping[str, Any],
    former: Mapping[str, Any] | None = None,
    changes: str = "",
) -> None:
    """Refuse a checkpoint whose stream is not the one now asked for.

    Args:
        checkpoint: Its folder.
        state: What `read_state` gave of it.
        constants: Of the stream.
        former: What older versions wrote for the same stream.
        changes: How the shards differ from the run's, if that is known.

    Raises:
        UserError: Names what differs.
    """
    for name, value in constants.items():
        accepted = (value, (former or {}).get(name, value))
        more = f" ({changes})" if changes and name in (former or {}) else ""
        require(
            state[name] in accepted,
            f"{checkpoint} was trained on another stream: {name} was {state[name]}, now {value}"
            f"{more}; give it the same data and batches, or another run.dir",
        )


def checkpoints_of(run: Path) -> list[Path]:
    """List a run's checkpoints, the newest first; a user's copy beside them, step-old, is none."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(
        (folder for folder in folders if folder.name.removeprefix("step-").isdecimal()),
        reverse=True,
    )


def _damage(checkpoint: Path) -> str | None:
    try:
        hashes: dict[str, str] = json.loads((checkpoint / MANIFEST).read_text())
        if missing := sorted(_PARTS - hashes.keys()):
            return f"{MANIFEST} does not list {missing[0]}"
        wrong = [name for name, value in hashes.items() if hash_file(checkpoint / name) != value]
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return f"{wrong[0]} has changed" if wrong else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _folders(folder: Path) -> list[Path]:
    return [*(path for path in folder.rglob("*") if path.is_dir()), folder]


def hash_file(path: Path) -> str:
    """Return a file's sha256, in hex."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network disks sync files alone
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP) or path.is_file():
            raise
    finally:
        os.close(descriptor)
