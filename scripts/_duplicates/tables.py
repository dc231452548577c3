"""What was found, as tables, and as a list of the images that stay."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.disks import explain
from data.settings import UserError, require
from data.shards import atomic_write
from data.text import printable
from pretrain.evaluation.feature_files import begins_with, require_own, writing
from scripts._duplicates.found import Found

_PAIRS = ("similarity", "key", "other_key", "group")
_GROUPS = ("group", "key")


def require_own_files(out: Path, keep: Path | None) -> None:
    """Raise `UserError` where a file would be replaced that this command has not written."""
    pairs, option = out / "pairs.csv", f"--out={out}"
    with writing(out):
        require_own(pairs, lambda path: begins_with(path, _PAIRS), option)
        require_own(out / "groups.csv", lambda path: begins_with(path, _GROUPS), option)
        require_own(out / "pairs.html", lambda _: pairs.exists(), option)
    require(
        keep is None or not keep.exists(),
        f"--keep={keep} is there already, and may be a list of your own; give another name, or "
        "remove it",
    )


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        UserError: It cannot be written.
    """
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {explain(error)}") from error


def write_pairs(path: Path, found: Found) -> None:
    """Write a row a pair, the most alike first."""
    pairs, names = found.pairs, found.names
    columns = (column.tolist() for column in vars(pairs).values())
    rows = (
        [f"{similarity:.6f}", names[first], names[second], found.groups[first]]
        for similarity, first, second in zip(*columns, strict=True)
    )
    write(path, _table(_PAIRS, rows))


def write_groups(path: Path, found: Found) -> None:
    """Write a row an image of a group."""
    rows = ([group, found.names[place]] for group, own in found.members.items() for place in own)
    write(path, _table(_GROUPS, rows))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def write_list(path: Path, found: Found) -> int:
    """Write the paths of the images, of each group the largest file alone; return how many.

    Of files equally large the first by name stays. Paths count from the folder of the list.
    """
    files = [found.archive.file(position) for position in found.positions]
    stay = {
        group: max(places, key=lambda place: files[place].num_bytes)
        for group, places in found.members.items()
    }
    here = Path(os.path.abspath(path.parent))  # noqa: PTH100 - links stay as they are
    lines: list[bytes] = []
    for place, file in enumerate(files):
        group = found.groups.get(place)
        if group is None or stay[group] == place:
            name = os.path.relpath(file.path, here)
            require(
                "\n" not in name and "\r" not in name,
                f"--keep={path} cannot name {printable(name)}, whose name has a line break; rename "
                "that file",
            )
            lines.append(os.fsencode(name) + b"\n")
    write(path, b"".join(sorted(lines)))
    return len(lines)
