"""Where the figures of a frozen encoder are written: a folder for each encoder."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from data.disks import explain
from data.settings import RunStopped, UserError, require
from data.shards import atomic_write
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.config import DEFAULT_NAME
from pretrain.evaluation.fingerprint import identity

logger = logging.getLogger(__name__)

_RESULT, _TABLE = "result.json", "table.md"
_SHARES = ("accuracy/", "iou/")  # of figures that are shares, and are shown in percent
_HELD_OUT = "held_out_loss"


def result_folder(folder: str | None, group: str, config: EncoderConfig) -> Path:
    """Return the folder for a measure's result.

    By default it lies in the run that the encoder comes from, where the report looks for it, and
    else in `runs/` under the encoder's name.

    Args:
        folder: The folder that the configuration names, or None.
        group: The measure, fewshot or probe.
        config: Which encoder.
    """
    if folder is not None:
        return Path(folder)
    kind = group if config.has_weights else f"{group}-untrained"
    source = _source(config)
    if source is not None and Path(source, "config.yaml").is_file():
        return Path(source, kind)
    name = source or config.name or DEFAULT_NAME
    name = Path(name).resolve().name if Path(name).is_dir() else name
    return Path("runs", f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}")


def _source(config: EncoderConfig) -> str | None:
    """Return the run, folder or timm name that the encoder is taken from or begun like."""
    named = config.like or config.init
    if named is None or named == "none":
        return None
    path = Path(named)
    is_of_run = path.name == "encoder" and (path.parent / "config.yaml").is_file()
    return str(path.parent) if is_of_run else named  # RUN/encoder is RUN's


def name_encoder(result: dict[str, Any]) -> str:
    """Name the encoder of a result in words: the weights' source, or that they are random."""
    if result.get("encoder.like") is not None:
        return f"random weights, like {result['encoder.like']}"
    init = str(result.get("encoder.init", ""))
    return "random weights" if init == "none" else init


def describe_encoder(config: EncoderConfig, encoder: VisionTransformer) -> dict[str, Any]:
    """Return what `result.json` says of the encoder that was measured."""
    like = {} if config.like is None else {"encoder.like": config.like}
    init = config.init or "none"
    return {"encoder.init": init, **like, "encoder.sha256": identity(encoder)}


def open_folder(folder: Path, key: str, encoder: dict[str, Any]) -> None:
    """Make the folder; one that holds the result of another encoder is left as it is.

    A run that was trained further, or again, is the same encoder: its newest result counts.

    Args:
        folder: For the result.
        key: The configuration's key and the folder, for messages.
        encoder: What `describe_encoder` returned.

    Raises:
        UserError: It cannot be written, or holds something else's result.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = (folder / _RESULT).read_bytes() if (folder / _RESULT).exists() else None
    except OSError as error:
        raise UserError(
            f"{key} is no folder that can be written: {explain(error)}; name another"
        ) from error
    if earlier is not None:
        result = _parse(earlier)
        require(
            _is_same(result, encoder),
            f"{key} holds the result of another encoder "
            f"(encoder.init={result.get('encoder.init', 'unknown')}), which would be replaced; "
            "name another folder",
        )


def _parse(content: bytes) -> dict[str, Any]:
    try:
        result = json.loads(content)
    except ValueError:
        return {}
    return result if isinstance(result, dict) else {}


def _is_same(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    """Tell whether two results are of one encoder: of one source, or the same to the bit."""
    if "encoder.sha256" not in earlier:
        return False
    if earlier["encoder.sha256"] == now["encoder.sha256"]:
        return True
    if now["encoder.init"] == "none" and "encoder.like" not in now:
        return False
    return all(_place(earlier, key) == _place(now, key) for key in ("encoder.init", "encoder.like"))


def _place(result: dict[str, Any], key: str) -> Path:
    return Path(str(result.get(key, "none"))).resolve()


def write_result(folder: Path, result: dict[str, Any], table: str) -> tuple[Path, Path]:
    """Write `result.json` and `table.md`, and return where they are.

    Raises:
        RunStopped: They cannot be written; then the log has the table.
    """
    texts = {_RESULT: json.dumps(result, indent=1) + "\n", _TABLE: table}
    try:
        for name, text in texts.items():
            with atomic_write(folder / name) as file:
                file.write(text.encode())
    except OSError as error:
        logger.warning("%s", table)  # else it would be lost
        raise RunStopped(f"the result cannot be written to {folder}: {explain(error)}") from error
    return folder / _RESULT, folder / _TABLE


def best_cell(run: str) -> dict[str, Any]:
    """Return how the probe of a run's folder reads its encoder best, by the held-out loss.

    The validation images have no part in the choice. Nothing comes back where there is no probe, or
    the run was trained further since.
    """
    path = Path(run, "probe", _RESULT)
    result = _parse(path.read_bytes()) if path.is_file() else {}
    cells: list[dict[str, Any]] = [of for of in result.get("cells", []) if _HELD_OUT in of]
    if not cells:
        return {}
    encoder = make_encoder(EncoderConfig(init=run))
    if result.get("encoder.sha256") != identity(encoder):
        return {}
    return min(cells, key=lambda cell: cell[_HELD_OUT]) | {"num_val": result["num_val"]}


def table_rows(cells: list[dict[str, Any]]) -> list[list[str]]:
    """Return a header, and a row a cell; what has a deviation shows it.

    What a cell has not, such as k-NN of patches, is left empty; lists, such as a figure of each
    class, are left out.
    """
    names = dict.fromkeys(
        name
        for cell in cells
        for name, value in cell.items()
        if not (name.startswith("deviation/") or isinstance(value, list))
    )
    header = [name.removeprefix("accuracy/").removeprefix("iou/") for name in names]
    return [header, *([_shown(cell, name) for name in names] for cell in cells)]


def make_table(cells: list[dict[str, Any]]) -> str:
    """Return `table_rows` as a Markdown table."""
    rows = table_rows(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = (
        " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "".join(f"| {line} |\n" for line in lines)


def _shown(cell: dict[str, Any], name: str) -> str:
    value = cell.get(name)
    if value is None:
        return ""
    if not name.startswith(_SHARES):
        return f"{value:g}" if isinstance(value, float) else str(value)
    deviation = cell.get(f"deviation/{name.partition('/')[2]}")
    return f"{value:.2%}" + ("" if deviation is None else f" ± {deviation:.2%}")
