"""Features in files: NumPy's array with a table of names, a table of both, or parquet.

Each is written from parts, one after the other, so that no more than one is in memory.
"""

import codecs
import csv
import importlib
import io
import math
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data.disks import explain
from data.settings import UserError, require
from data.shards import atomic_write
from data.text import printable

HEADER = ("row", "key")  # of each table, before the numbers
_COLUMNS = ("key", "features")  # of parquet
ENDINGS = (".npy", ".csv", ".parquet")
_CSV_BYTES = 9  # of a number at least, as features go: 0.123456
Rows = Iterable[tuple[Sequence[str], np.ndarray]]  # names and features, part after part


class Size(NamedTuple):
    """How many features a file holds, and of what.

    Attributes:
        num_rows: Images.
        shape: Of the features of one.
        dtype: float32 or float16.
    """

    num_rows: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def require_format(out: Path, is_of_patches: bool) -> None:
    """Raise `UserError` where a file's ending names no format, or one that cannot be written."""
    require(
        out.suffix in ENDINGS,
        f"--out={out} ends neither in .npy, which NumPy reads, nor in .parquet nor .csv, tables",
    )
    require(
        not (is_of_patches and out.suffix == ".csv"),
        f"--out={out} is a table, and a row would hold all patches of an image; with --patches "
        "give a name that ends in .npy or .parquet",
    )
    require(
        out.suffix != ".parquet" or find_spec("pyarrow") is not None,
        f"--out={out} needs pyarrow, which is not installed; run pip install -e '.[parquet]' here, "
        "or give a name that ends in .npy",
    )


def require_place(out: Path) -> None:
    """Refuse, before an image is read, a place that takes no file or holds another's."""
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
        files = [out, out.with_suffix(".csv")] if out.suffix == ".npy" else [out]
        for path in files:
            require_own(path, _is_own, f"--out={out}")


def require_own(path: Path, is_own: Callable[[Path], bool], option: str) -> None:
    """Raise `UserError` where a file is there that would be replaced and is none of ours."""
    require(
        not path.exists() or is_own(path),
        f"{option} would replace {printable(str(path))}, which this command has not written; give "
        "another name, or move that file away",
    )


def begins_with(path: Path, columns: Sequence[str]) -> bool:
    """Tell whether a table begins with these columns."""
    with path.open("rb") as file:
        return file.readline(99).startswith(",".join(columns).encode())


def _is_own(path: Path) -> bool:
    """Tell whether a file is as `write_features` leaves it."""
    if path.suffix == ".npy":
        return path.with_suffix(".csv").exists()  # which is looked at, too
    if path.suffix == ".csv":
        return begins_with(path, HEADER)
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        return parquet.read_schema(path).names == list(_COLUMNS)
    except ValueError:  # it is no parquet
        return False


def count_bytes(out: Path, size: Size) -> int:
    """Return the bytes of a file of features; of a table of text at least so many."""
    numbers = size.num_rows * math.prod(size.shape)
    return numbers * (_CSV_BYTES if out.suffix == ".csv" else size.dtype.itemsize)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Say in one line what cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out={path} cannot be written: {explain(error)}") from error


# ---------------------------------------------------------------- writing


def write_features(out: Path, rows: Rows, size: Size) -> None:
    """Write a file of features, whole or not at all; beside an array, the table of its names.

    Args:
        out: It ends in one of `ENDINGS`.
        rows: What it holds, part after part.
        size: How much that is.
    """
    with writing(out), ExitStack() as stack:
        file = stack.enter_context(atomic_write(out))
        if out.suffix == ".npy":
            names = stack.enter_context(atomic_write(out.with_suffix(".csv")))
            _write_table(names, _write_array(file, rows, size))
        elif out.suffix == ".csv":
            _write_table(file, rows)
        else:
            _write_parquet(file, rows, size)


def _write_array(file: BinaryIO, rows: Rows, size: Size) -> Rows:
    """Write the features; yield the names alone, to be written beside them."""
    descr = np.lib.format.dtype_to_descr(size.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (size.num_rows, *size.shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for names, values in rows:
        file.write(np.ascontiguousarray(values).data)
        yield names, np.empty((len(names), 0))


def _write_table(file: BinaryIO, rows: Rows) -> None:
    table = csv.writer(codecs.getwriter("utf-8")(file))
    number = 0
    for names, values in rows:
        if number == 0:
            table.writerow([*HEADER, *range(values.shape[1])])
        for name, own in zip(names, values, strict=True):
            table.writerow([number, name, *(f"{value:.9g}" for value in own)])
            number += 1


def _write_parquet(file: BinaryIO, rows: Rows, size: Size) -> None:
    pyarrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    kind = pyarrow.from_numpy_dtype(size.dtype)
    for side in reversed(size.shape):
        kind = pyarrow.list_(kind, side)
    schema = pyarrow.schema(list(zip(_COLUMNS, (pyarrow.string(), kind), strict=True)))
    with parquet.ParquetWriter(file, schema) as writer:
        for names, values in rows:
            features = pyarrow.array(values.reshape(-1))
            for side in reversed(size.shape):
                features = pyarrow.FixedSizeListArray.from_arrays(features, side)
            writer.write_table(pyarrow.table([pyarrow.array(names), features], schema))


# ---------------------------------------------------------------- reading


def read_features(path: Path, key: str) -> tuple[list[str], np.ndarray]:
    """Return the names and the features of an array that `write_features` wrote.

    The features stay on disk, and are read where they are looked at.

    Args:
        path: It ends in .npy; its table lies beside it.
        key: The argument that names it, for messages.

    Raises:
        UserError: It is none, or its table is of other images.
    """
    table = path.with_suffix(".csv")
    try:
        values: np.ndarray = np.load(path, mmap_mode="r")
        header, *rows = csv.reader(io.StringIO(table.read_text(encoding="utf-8"), newline=""))
    except (OSError, ValueError) as error:
        reason = explain(error) if isinstance(error, OSError) else "damaged, or of another kind"
        raise UserError(
            f"{key}={printable(str(path))} and {table.name} beside it cannot be read: {reason}; "
            "give an array that embed.py wrote"
        ) from error
    require(
        tuple(header) == HEADER and len(rows) == len(values) and values.ndim == 2,
        f"{key}={printable(str(path))} is no array of pooled features with a table of as many "
        f"names beside it ({table.name}); give one that embed.py wrote, without --patches",
    )
    return [name for _, name in rows], values
