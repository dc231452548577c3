"""Parquet and Arrow files through pyarrow: rows in batches, and the classes that they name."""

import importlib
import json
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from data.disks import first_line
from data.settings import UserError, require
from data.text import printable

_BATCH_ROWS = 64  # of a parquet file; an Arrow file has its own
_STREAM, _FILE = b"\xff\xff\xff\xff", b"ARROW1"
_Image = tuple[bytes | None, str | None]  # the encoded file, its path


class ArrowRow(NamedTuple):
    """A row: its number in the file, and its cells; None of a column that is not asked for."""

    number: int
    image: _Image
    label: object
    caption: object


class ArrowFile:
    """A table of one file, which is read in batches of rows.

    Attributes:
        columns: Their names.
        num_rows: How many rows there are.
        metadata: The schema's, by name.
    """

    def __init__(self, path: Path, pyarrow: Any) -> None:
        self._path, self._pyarrow = path, pyarrow
        with path.open("rb") as file:
            start = file.read(8)
        self._is_parquet = start.startswith(b"PAR1")
        if self._is_parquet:
            parquet = importlib.import_module("pyarrow.parquet")
            self._parquet = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
            self._schema = self._parquet.schema_arrow
            self.num_rows = int(self._parquet.metadata.num_rows)
        else:
            require(
                start.startswith((_STREAM, _FILE)),
                f"SOURCE={printable(str(path))} is neither parquet nor Arrow; fetch it again (git "
                "lfs pull, where it is a pointer of git-lfs)",
            )
            self._schema = self._arrow_schema()
            self.num_rows = sum(batch.num_rows for _, batch in self._arrow_batches([], None))
        self.columns: list[str] = list(self._schema.names)
        raw = cast(dict[bytes, bytes], self._schema.metadata or {})
        self.metadata = {key.decode("utf-8", "replace"): value for key, value in raw.items()}

    def close(self) -> None:
        """Close the file."""
        if self._is_parquet:
            self._parquet.close()

    def type_of(self, column: str) -> str:
        """Return what a column holds, in Arrow's words."""
        return " ".join(str(self._schema.field(column).type).split())[:80]

    def is_image(self, column: str) -> bool:
        """Tell whether a column holds encoded files: bytes, a path, or a struct of the two."""
        kind, types = self._schema.field(column).type, self._pyarrow.types
        if types.is_struct(kind):
            fields = {kind.field(place).name: kind.field(place).type for place in range(len(kind))}
            return "bytes" in fields and self._is_bytes(fields["bytes"])
        return self._is_bytes(kind) or self._is_text(kind)

    def is_label(self, column: str) -> bool:
        """Tell whether a column holds whole numbers or names."""
        kind, types = self._schema.field(column).type, self._pyarrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        return types.is_integer(kind) or self._is_text(kind) or types.is_null(kind)

    def is_caption(self, column: str) -> bool:
        """Tell whether a column holds texts, or lists of texts."""
        kind, types = self._schema.field(column).type, self._pyarrow.types
        if types.is_list(kind) or types.is_large_list(kind):
            kind = kind.value_type
        return self._is_text(kind)

    def _is_bytes(self, kind: Any) -> bool:
        types = self._pyarrow.types
        return bool(
            types.is_binary(kind)
            or types.is_large_binary(kind)
            or types.is_fixed_size_binary(kind)
            or types.is_null(kind)
        )

    def _is_text(self, kind: Any) -> bool:
        types = self._pyarrow.types
        return bool(types.is_string(kind) or types.is_large_string(kind))

    def rows(
        self,
        image: str,
        label: str | None = None,
        caption: str | None = None,
        wanted: set[int] | None = None,
    ) -> Iterator[ArrowRow]:
        """Yield rows.

        Args:
            image: A column.
            label: A column; None: each label is None.
            caption: A column; None: each caption is None.
            wanted: The rows to be read; None: all.
        """
        columns = [name for name in (image, label, caption) if name is not None]
        batches = self._parquet_batches if self._is_parquet else self._arrow_batches
        for start, batch in batches(columns, wanted):
            images = batch.column(image)
            others = [None if name is None else batch.column(name) for name in (label, caption)]
            for place in range(batch.num_rows):
                if wanted is None or start + place in wanted:
                    values = [None if own is None else own[place].as_py() for own in others]
                    yield ArrowRow(start + place, _parts(images[place].as_py()), *values)

    def _parquet_batches(
        self, columns: Sequence[str], wanted: set[int] | None
    ) -> Iterator[tuple[int, Any]]:
        start = 0
        rows = sorted(wanted or ())
        for group in range(self._parquet.num_row_groups):
            end = start + self._parquet.metadata.row_group(group).num_rows
            if wanted is None or bisect_left(rows, start) < bisect_left(rows, end):
                place = start
                for batch in self._parquet.iter_batches(
                    _BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False
                ):
                    yield place, batch
                    place += batch.num_rows
            start = end

    def _arrow_batches(
        self, columns: Sequence[str], wanted: set[int] | None
    ) -> Iterator[tuple[int, Any]]:
        del columns, wanted  # nothing is copied before it is asked for
        start = 0
        with self._pyarrow.memory_map(str(self._path)) as source:
            for batch in self._open_arrow(source):
                yield start, batch
                start += batch.num_rows

    def _arrow_schema(self) -> Any:
        with self._pyarrow.memory_map(str(self._path)) as source:
            ipc = self._pyarrow.ipc
            is_file = self._has_file_magic()
            return (ipc.open_file(source) if is_file else ipc.open_stream(source)).schema

    def _open_arrow(self, source: Any) -> Iterator[Any]:
        ipc = self._pyarrow.ipc
        if self._has_file_magic():
            reader = ipc.open_file(source)
            return (reader.get_batch(number) for number in range(reader.num_record_batches))
        return iter(ipc.open_stream(source))

    def _has_file_magic(self) -> bool:
        with self._path.open("rb") as file:
            return file.read(len(_FILE)) == _FILE


def _parts(value: object) -> _Image:
    """Return a cell's bytes and path."""
    if isinstance(value, dict):
        own = cast(dict[str, Any], value)
        return own.get("bytes"), own.get("path") or None
    if isinstance(value, str):
        return None, value or None
    return cast(bytes | None, value), None


@contextmanager
def open_file(path: Path) -> Generator[ArrowFile]:
    """Open a parquet or Arrow file.

    Raises:
        UserError: pyarrow is not installed, or the file is damaged.
    """
    require(
        find_spec("pyarrow") is not None,
        f"SOURCE={printable(str(path))} needs pyarrow to be read: pip install -e '.[parquet]'",
    )
    pyarrow: Any = importlib.import_module("pyarrow")
    table = None
    try:
        table = ArrowFile(path, pyarrow)
        yield table
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"SOURCE={printable(str(path))} cannot be read ({first_line(error)}); fetch it again"
        ) from error
    finally:
        if table is not None:
            table.close()


# ---------------------------------------------------------------- the names of classes


def class_names(table: ArrowFile, column: str, folder: Path) -> list[str] | None:
    """Return the names of a column's classes, in order; None if nothing names them.

    They stand in the schema's metadata, in dataset_info.json beside the table, or in README.md.

    Args:
        table: The table.
        column: Its column of labels.
        folder: Of the dataset.
    """
    sources = (_info_of_schema(table), *_infos_beside(folder))
    return next((names for info in sources if (names := _names(info, column))), None)


def _info_of_schema(table: ArrowFile) -> object:
    try:
        return _get(json.loads(table.metadata.get("huggingface", b"{}")), "info", "features")
    except ValueError:
        return None


def _infos_beside(folder: Path) -> Iterator[object]:
    for place in (folder, *sorted(folder.glob("*/"))):
        try:
            info: object = json.loads((place / "dataset_info.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        yield _get(info, "features")
    for place in (folder, folder.parent):
        try:
            text = (place / "README.md").read_text("utf-8")
            head = text.split("---")[1] if text.startswith("---") else ""
            info = _get(yaml.safe_load(head), "dataset_info")
        except (OSError, ValueError, IndexError, yaml.YAMLError):
            continue
        configurations = cast(list[object], info) if isinstance(info, list) else [info]
        yield from (_get(own, "features") for own in configurations)


def _get(value: object, *names: str) -> object:
    for name in names:
        value = cast(dict[str, object], value).get(name) if isinstance(value, dict) else None
    return value


def _names(features: object, column: str) -> list[str] | None:
    """Return a column's names of `features`, as JSON or as the YAML of README.md has them."""
    if isinstance(features, list):  # YAML: [{name: label, dtype: {class_label: {names: …}}}]
        entries = cast(list[object], features)
        own = next((entry for entry in entries if _get(entry, "name") == column), None)
        names = _get(own, "dtype", "class_label", "names")
    else:
        names = _get(features, column, "names")
    if isinstance(names, dict):  # {"0": "cat", "1": "dog"}
        names = list(cast(dict[str, object], names).values())
    return [str(name) for name in cast(list[object], names)] if isinstance(names, list) else None
