"""Reads a run's folder afterwards: its records, its configuration, its encoder."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from data.disks import one_line
from data.settings import UserError, require
from finetune.backbone import load_as_saved
from finetune.config import FinetuneConfig
from finetune.vilt.config import ViltFinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.configuration.layers import read_yaml
from pretrain.configuration.load import keys
from pretrain.encoder.facts import image_data
from pretrain.records.checkpoint import newest_intact
from pretrain.records.kinds import Kind, kind_of
from pretrain.records.logs import read_records
from pretrain.vilt.config import ViltConfig
from scripts._report.findings import Record, last_measured, percent

Content = TypeVar("Content")

_NEEDED = ("metrics.jsonl", "config.yaml")
_SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "position", "position_at", "stem")
_OF_PIXELS = ("pixels", "normalised_pixels")  # kinds of target that are values, not classes
_RESULTS = {
    "accuracy": "accuracy",
    "map": "mean average precision",
    "accuracy_matching": "pairs told rightly",
    "accuracy_words": "hidden words right",
}
_CONFIGS: dict[Kind | None, Any] = {
    Kind.PRETRAINING: PretrainConfig,
    Kind.IMAGE_TEXT: ViltConfig,
    Kind.FINE_TUNING: FinetuneConfig,
    Kind.IMAGE_TEXT_TUNING: ViltFinetuneConfig,
}


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        folder: RUN.
        records: Those of metrics.jsonl, at least one; what was not finite is NaN.
        config: The dotted keys of config.yaml and their values; what it lacks has its default.
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
    def kind(self) -> Kind:
        """What kind of run it is."""
        kind = kind_of({key.split(".")[0] for key in self.config})
        assert kind is not None  # read_run refuses others
        return kind

    @property
    def is_tuned(self) -> bool:
        """Whether it is of labelled images, with or without sentences, and not pretraining."""
        return self.kind in (Kind.FINE_TUNING, Kind.IMAGE_TEXT_TUNING)

    @property
    def has_classes(self) -> bool:
        """Whether its loss is a cross entropy over classes, and not an error of pixels."""
        return self.config.get("target.kind") not in _OF_PIXELS

    @property
    def task(self) -> str:
        """The task of each patch: losses are comparable within it."""
        if self.is_tuned:
            return "classes"
        if self.kind is Kind.IMAGE_TEXT:
            return f"objectives {', '.join(weights(self.config))}"
        kind, grid = self.config["target.kind"], self.config["target.grid"]
        sizes = [f"{self.config['target.bits']} bits"] if self.has_classes else []
        cells = [f"{grid} x {grid}"] if kind == "colour_grid" else []
        return ", ".join([f"target {kind}", *cells, *sizes])

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return self.config["optim.batch_size"]

    @property
    def unit(self) -> str:
        """Of the loss."""
        if self.kind is Kind.IMAGE_TEXT:
            return "weighted sum"
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
    records = _read(folder / "metrics.jsonl", read_records)
    require(
        len(records) > 0,
        f"{folder}/metrics.jsonl has no record yet; the first comes after run.log_every steps",
    )
    bad = folder / "bad_samples.jsonl"
    return Run(
        folder,
        [_with_nan(record) for record in records],
        _read_config(folder),
        _newest_intact(folder, _states(folder / "checkpoints")),
        tuple(r["step"] for r in _read(bad, read_records)) if bad.is_file() else (),
    )


@lru_cache(maxsize=1)
def _newest_intact(folder: Path, _: tuple[Any, ...]) -> Path | None:
    """Hash the checkpoints only when one has changed: a page that is watched is made often."""
    return newest_intact(folder)


def _states(checkpoints: Path) -> tuple[Any, ...]:
    """Return what tells whether a checkpoint has changed, without reading it."""
    states: list[Any] = []
    for path in sorted(checkpoints.glob("*/**/*")):
        with suppress(FileNotFoundError):  # the run has just deleted an old one
            stat = path.lstat()
            states.append((path, stat.st_size, stat.st_mtime_ns))
    return tuple(states)


def _with_nan(record: dict[str, float | None]) -> Record:
    """Take null for what it stands for: JSON has no name for a number that is not finite."""
    return {key: math.nan if value is None else value for key, value in record.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the dotted keys of config.yaml; a run that is older than some has their defaults."""
    groups = read_yaml(str(folder / "config.yaml"))
    kind = kind_of(groups)
    require(
        kind is not Kind.ALTERNATIVE,
        f"RUN={folder} was trained by another project's objective, of which there is no report; "
        "its losses are in its metrics.jsonl",
    )
    if kind not in _CONFIGS:
        raise UserError(f"RUN={folder} has a config.yaml that no run has written; name a run")
    return {key.name: key.default for key in keys(_CONFIGS[kind])} | dict(_flat(groups))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of one JSON object.

    Raises:
        UserError: It is not valid.
    """
    content = _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")))
    require(isinstance(content, dict), f"{path} holds no JSON object; restore or delete it")
    return cast(dict[str, Any], content)


def _read(path: Path, read: Callable[[Path], Content]) -> Content:
    try:
        return read(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {one_line(error)}; restore or delete it") from error


# ---------------------------------------------------------------- in words


def describe(run: Run) -> dict[str, str]:
    """Return a run's kind, data and state: names -> values, in the order to read them."""
    last, steps = run.records[-1], run.config["optim.steps"]
    written = datetime.fromtimestamp((run.folder / "metrics.jsonl").stat().st_mtime, UTC)
    return {
        "Kind": _kind(run),
        "Steps": f"{last['step']:,.0f} of {steps:,} ({last['epoch']:.1f} epochs)",
        "Encoder": _encoder(run),
        "Images": _size(run.config),
        "Data": _data(run),
        "Result": _result(run),
        "Last record": f"{written:%Y-%m-%d %H:%M} UTC",
    }


def _size(config: dict[str, Any]) -> str:
    """Say how large images are, or within which sides they keep their own aspect."""
    size, long_side = config["data.image_size"], config.get("data.long_side")
    if long_side is not None:
        return f"{size[0]} pixels the short side, {long_side} at most the long one"
    return " x ".join(map(str, size)) + " pixels"


def _kind(run: Run) -> str:
    config = run.config
    if run.is_tuned:
        of_pairs = " on images and sentences" * (run.kind is Kind.IMAGE_TEXT_TUNING)
        return f"fine-tuning{of_pairs}"
    if run.kind is Kind.IMAGE_TEXT:
        return f"image-text pretraining (ViLT); weights: {', '.join(weights(config))}"
    sight = "" if config["encoder.sees_masked"] else "; masked patches do not enter the encoder"
    return (
        f"masked patch pretraining; target {config['target.kind']}, {config['corruption.kind']} "
        f"masks on {config['corruption.ratio'] * 100:.0f} % of the patches{sight}"
    )


def weights(config: dict[str, Any]) -> Iterator[str]:
    """Yield the objectives of an image-text run with their weights, without those of weight 0."""
    for key, value in config.items():
        if key.startswith("loss.") and value:
            yield f"{key.removeprefix('loss.')} {value:g}"


def _encoder(run: Run) -> str:
    """Name the encoder, what was changed in it, what it started from, and its size."""
    changes = {key: run.config[f"encoder.{key}"] for key in _SIZES}
    changed = [f"{key}={value}" for key, value in changes.items() if value is not None]
    name, size = run.config["encoder.name"], []
    if run.checkpoint is not None:
        encoder = load_as_saved(run.checkpoint)
        name = image_data(encoder)["architecture"]
        num = sum(parameter.numel() for parameter in encoder.parameters())
        size = [f"{num / 1e6:,.2f} million parameters"]
    return ", ".join([*([name] if name else []), *changed, *_origin(run), *size])


def _origin(run: Run) -> list[str]:
    """Return what a run's encoder started from; nothing where it was made anew."""
    like, init = run.config["encoder.like"], run.config["encoder.init"]
    if like is not None:
        return [f"from random weights, begun like {like}"]
    return [] if init in (None, "none") else [f"started from {init}"]


def _data(run: Run) -> str:
    names = ("train", "val") if run.is_tuned else ("shards", "val_shards")
    train, val = (run.config[f"data.{name}"] for name in names)
    ratio = run.config["data.val_ratio"]
    aside = f"{percent(ratio)} of them (data.val_ratio)" if ratio else "none"
    return f"{_spec(train)}; validation: {_spec(val) if val else aside}"


def _spec(spec: Any) -> str:
    return ", ".join(map(str, spec)) if isinstance(spec, list) else str(spec)


def _result(run: Run) -> str:
    """Return the last loss and accuracy of each split, in words."""
    parts: list[str] = []
    for measured in (last_measured(run.records, split) for split in ("val", "train")):
        if measured is not None:
            figures = measured.figures
            loss = f"{measured.split} loss {figures['loss']:.3f} ({run.unit})"
            scores = [f"{_RESULTS[k]} {percent(figures[k])}" for k in _RESULTS if k in figures]
            parts.append(", ".join([loss, *scores]))
    return "; ".join(parts)
