"""What a run's folder tells afterwards: its records, its configuration, its encoder. Reads only."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import safe_open

from data.disks import one_line
from data.settings import UserError, require
from pretrain.configuration.layers import read_yaml
from pretrain.encoder.extensions import has_additions, rebuild
from pretrain.records.checkpoint import find_newest
from pretrain.records.logs import read_records
from scripts._report.findings import Record, last_with, percent

Content = TypeVar("Content")

_NEEDED = ("metrics.jsonl", "config.yaml")
_SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "position", "position_at", "stem")
_OF_PIXELS = ("pixels", "normalised_pixels")  # kinds of target that are values, not classes
_OUR_FORMAT = "masked_patch."  # what is written before timm's name where timm cannot hold it
_RESULTS = {"accuracy": "accuracy", "map": "mean average precision"}


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        folder: RUN.
        records: Those of metrics.jsonl, at least one; what was not finite is NaN.
        config: config.yaml as plain values.
        checkpoint: The newest whole one, or None.
        bad_samples: The step of each entry of bad_samples.jsonl.
    """

    folder: Path
    records: list[Record]
    config: dict[str, Any]
    checkpoint: Path | None
    bad_samples: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The folder's own."""
        return self.folder.resolve().name

    @property
    def is_pretraining(self) -> bool:
        """Whether pretrain/run.py wrote it, and not finetune/run.py."""
        return "corruption" in self.config

    @property
    def target(self) -> str:
        """What a pretraining run predicts, by its name in target.kind."""
        return self.config["target"].get("kind", "mean_colour")

    @property
    def has_classes(self) -> bool:
        """Whether its loss is a cross entropy over classes, and not an error of pixels."""
        return not (self.is_pretraining and self.target in _OF_PIXELS)

    @property
    def task(self) -> str:
        """What is asked of each patch: losses are comparable within it."""
        if not self.is_pretraining:
            return "classes"
        target = self.config["target"]
        sizes = [f"{target['bits']} bits"] if self.has_classes else []
        cells = [f"{target['grid']} x {target['grid']}"] if self.target == "colour_grid" else []
        return ", ".join([self.target, *cells, *sizes])

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return self.config["optim"]["batch_size"]

    @property
    def unit(self) -> str:
        """Of the loss."""
        return "nats" if self.has_classes else "mean squared error"


def read_run(folder: Path) -> Run:
    """Read a run's folder, and change nothing in it.

    Raises:
        UserError: It is none, or has no record yet.
    """
    require(folder.is_dir(), f"RUN={folder} is no folder; name a run's, such as runs/demo")
    for name in _NEEDED:
        require(
            (folder / name).is_file(),
            f"RUN={folder} has no {name}; name a folder that pretrain/run.py or finetune/run.py "
            "has written",
        )
    records = read_file(folder / "metrics.jsonl", read_records)
    require(
        len(records) > 0,
        f"{folder}/metrics.jsonl has no record yet; the first comes after run.log_every steps",
    )
    config = read_yaml(str(folder / "config.yaml"))
    require(
        "alternative" not in config,
        f"RUN={folder} was trained by another project's objective, of which there is no report; "
        "its losses are in its metrics.jsonl",
    )
    bad = folder / "bad_samples.jsonl"
    return Run(
        folder,
        [_with_nan(record) for record in records],
        config,
        find_newest(folder),
        tuple(r["step"] for r in read_file(bad, read_records)) if bad.is_file() else (),
    )


def _with_nan(record: dict[str, float | None]) -> Record:
    """Take null for what it stands for: JSON has no name for a number that is not finite."""
    return {key: math.nan if value is None else value for key, value in record.items()}


def read_file(path: Path, read: Callable[[Path], Content]) -> Content:
    """Return `read(path)`.

    Raises:
        UserError: The file is not in its format.
    """
    try:
        return read(path)
    except ValueError as error:
        reason = one_line(error)
        raise UserError(f"{path} is damaged: {reason}; restore or delete it") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of one JSON object.

    Raises:
        UserError: It is not valid.
    """
    content = read_file(path, lambda path: json.loads(path.read_text(encoding="utf-8")))
    require(isinstance(content, dict), f"{path} holds no JSON object; restore or delete it")
    return cast(dict[str, Any], content)


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a configuration's dotted keys and their values."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# ---------------------------------------------------------------- in words


def describe(run: Run) -> dict[str, str]:
    """Say what a run was: names -> values, in the order to read them."""
    last, steps = run.records[-1], run.config["optim"]["steps"]
    written = datetime.fromtimestamp((run.folder / "metrics.jsonl").stat().st_mtime, UTC)
    return {
        "Kind": _kind(run),
        "Steps": f"{last['step']:,.0f} of {steps:,} ({last['epoch']:.1f} epochs)",
        "Encoder": _encoder(run),
        "Images": " x ".join(map(str, run.config["data"]["image_size"])) + " pixels",
        "Data": _data(run.config["data"]),
        "Result": _result(run),
        "Last record": f"{written:%Y-%m-%d %H:%M} UTC",
    }


def _kind(run: Run) -> str:
    if not run.is_pretraining:
        return "fine-tuning"
    corruption, encoder = run.config["corruption"], run.config["encoder"]
    masks = f"{corruption['ratio']:.0%} of the patches".replace("%", " %")
    sight = "" if encoder.get("sees_masked", True) else "; masked patches do not enter the encoder"
    return (
        f"masked patch pretraining; target {run.target}, {corruption.get('kind', 'random')} masks "
        f"on {masks}{sight}"
    )


def _encoder(run: Run) -> str:
    """Name the encoder, what was changed in it, what it started from, and its size."""
    config = run.config["encoder"]
    changed = [f"{key}={config[key]}" for key in _SIZES if config.get(key) is not None]
    origin = _origin(config)
    name, size = config["name"], []
    if run.checkpoint is not None:
        encoder = run.checkpoint / "encoder"
        name = read_json(encoder / "config.json")["architecture"].removeprefix(_OUR_FORMAT)
        size = [f"{_num_parameters(encoder) / 1e6:,.2f} million parameters"]
    return ", ".join([*([name] if name else []), *changed, *origin, *size])


def _origin(config: dict[str, Any]) -> list[str]:
    """Say what a run's encoder started from; nothing where it was made anew."""
    if config.get("like") is not None:
        return [f"from random weights, begun like {config['like']}"]
    return [] if config["init"] in (None, "none") else [f"started from {config['init']}"]


def _num_parameters(encoder: Path) -> int:
    if has_additions(encoder):  # a table there may be fixed
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in rebuild(encoder, {}).parameters())
    with safe_open(encoder / "model.safetensors", "pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _data(config: dict[str, Any]) -> str:
    train = config["shards"] if "shards" in config else config["train"]
    val = config["val_shards"] if "val_shards" in config else config["val"]
    return f"{_spec(train)}; validation: {_spec(val) if val else 'none'}"


def _spec(spec: Any) -> str:
    return ", ".join(map(str, spec)) if isinstance(spec, list) else str(spec)


def _result(run: Run) -> str:
    """Give the last loss and accuracy of each split."""
    parts: list[str] = []
    for split, name in (("val", "validation"), ("train", "training")):
        last = last_with(run.records, f"{split}/loss")
        if last:
            others = [
                f"{label} {percent(last[f'{split}/{key}'])}"
                for key, label in _RESULTS.items()
                if f"{split}/{key}" in last
            ]
            parts.append(
                ", ".join([f"{name} loss {last[f'{split}/loss']:.3f} ({run.unit})", *others])
            )
    return "; ".join(parts)
