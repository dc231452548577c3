"""What a run's folder tells afterwards: its records, its configuration, its encoder. Reads only."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import safe_open
from yaml import YAMLError

from data.settings import UserError, require
from pretrain.checkpoint import find_newest
from pretrain.metrics import read_records
from scripts.report_page.findings import last_with, percent

Content = TypeVar("Content")

_NEEDED = ("metrics.jsonl", "config.yaml")
_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        folder: RUN.
        records: Those of metrics.jsonl, at least one.
        config: config.yaml as plain values.
        checkpoint: The newest whole one, or None.
    """

    folder: Path
    records: list[dict[str, float]]
    config: dict[str, Any]
    checkpoint: Path | None

    @property
    def is_pretraining(self) -> bool:
        """Whether pretrain/run.py wrote it, and not finetune/run.py."""
        return "corruption" in self.config

    @property
    def num_bad(self) -> int:
        """Entries of bad_samples.jsonl."""
        path = self.folder / "bad_samples.jsonl"
        return len(read_file(path, read_records)) if path.is_file() else 0


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
    config = OmegaConf.to_container(read_file(folder / "config.yaml", OmegaConf.load))
    return Run(folder, records, cast(dict[str, Any], config), find_newest(folder))


def read_file(path: Path, read: Callable[[Path], Content]) -> Content:
    """Return `read(path)`.

    Raises:
        UserError: The file is not in its format.
    """
    try:
        return read(path)
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged: {reason}; restore or delete it") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of one JSON object.

    Raises:
        UserError: It is not valid.
    """
    content = read_file(path, lambda path: json.loads(path.read_text(encoding="utf-8")))
    require(isinstance(content, dict), f"{path} holds no JSON object; restore or delete it")
    return cast(dict[str, Any], content)


# ---------------------------------------------------------------- in words


def describe(run: Run) -> dict[str, str]:
    """Say what a run was: names -> values, in the order to read them."""
    last, steps = run.records[-1], run.config["optim"]["steps"]
    written = datetime.fromtimestamp((run.folder / "metrics.jsonl").stat().st_mtime, UTC)
    return {
        "Kind": "masked patch pretraining" if run.is_pretraining else "fine-tuning",
        "Steps": f"{last['step']:,.0f} of {steps:,} ({last['epoch']:.1f} epochs)",
        "Encoder": _encoder(run),
        "Images": " x ".join(map(str, run.config["data"]["image_size"])) + " pixels",
        "Data": _data(run.config["data"]),
        "Result": _result(run.records),
        "Last record": f"{written:%Y-%m-%d %H:%M} UTC",
    }


def _encoder(run: Run) -> str:
    """Name the encoder, what was changed in it, what it started from, and its size."""
    config = run.config["encoder"]
    changed = [f"{key}={config[key]}" for key in _SIZES if config[key] is not None]
    origin = [] if config["init"] == "none" else [f"started from {config['init']}"]
    name, size = config["name"], []
    if run.checkpoint is not None:
        encoder = run.checkpoint / "encoder"
        name = read_json(encoder / "config.json")["architecture"]
        size = [f"{_num_parameters(encoder) / 1e6:,.2f} million parameters"]
    return ", ".join([*([name] if name else []), *changed, *origin, *size])


def _num_parameters(encoder: Path) -> int:
    with safe_open(encoder / "model.safetensors", "pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _data(config: dict[str, Any]) -> str:
    train = config["shards"] if "shards" in config else config["train"]
    val = config["val_shards"] if "val_shards" in config else config["val"]
    return f"{_spec(train)}; validation: {_spec(val) if val else 'none'}"


def _spec(spec: Any) -> str:
    return ", ".join(map(str, spec)) if isinstance(spec, list) else str(spec)


def _result(records: list[dict[str, float]]) -> str:
    """Give the last loss and accuracy of each split."""
    parts: list[str] = []
    for split, name in (("val", "validation"), ("train", "training")):
        last = last_with(records, f"{split}/loss")
        if last:
            loss, accuracy = last[f"{split}/loss"], last[f"{split}/accuracy"]
            parts.append(f"{name} loss {loss:.3f} nats, accuracy {percent(accuracy)}")
    return "; ".join(parts)
