"""The model card: what it is, what it was made from, how it is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data.index.catalog import Catalog
from data.settings import RunStopped, UserError
from data.storage.locations import Storage, is_remote, public_name
from data.text import count
from pretrain.records.logs import read_records
from scripts._export.format import Format
from scripts._export.pictures import is_local
from scripts._export.source import Source, read_config

NO_LICENCE = "other"
_MAX_CLASSES = 50
_SPLITS = ("shards", "val_shards", "train", "val")
_OBJECTIVES = {
    "corruption": "Masked patch prediction ([arXiv:2010.11929](https://arxiv.org/abs/2010.11929), "
    "B.1.2): patches are corrupted, and each one's {target} predicted. No labels are used. The "
    "class token gets no loss: read patch tokens or their average.",
    "head": "Classification with labels.",
}
_TARGETS = {
    "mean_colour": "mean colour is",
    "colour_grid": "colours, in a grid of cells, are",
    "pixels": "pixels are",
    "normalised_pixels": "pixels, normalised, are",
    "words": "nearest of some patches learnt by k-means is",
}
_GROUPS = ("corruption", "target", "decoder", "objective", "head", "mix", "optim")  # of config.yaml


def write_card(source: Source, form: Format, place: str, licence: str, checked: str) -> str:
    """Return README.md for a folder or a repository of the hub.

    Args:
        source: What was exported.
        form: The format.
        place: Where its users find it: as `Format.usage` takes it.
        licence: The hub's identifier of a licence.
        checked: What was compared, and with which difference.
    """
    parts = [
        _front_matter(source, form, licence),
        f"# {place.rpartition('/')[2].rpartition(':')[2]}",
        _summary(source, licence),
        "## How to load it",
        f"```python\n{form.usage(source, place)}\n```",
        "\n".join(f"- {line}" for line in form.describe(source)),
        *_training(source.path, source.config),
        "## Check",
        f"{checked[0].upper()}{checked[1:]}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(source: Source, form: Format, licence: str) -> str:
    what = "image-classification" if source.classifier else "image-feature-extraction"
    fields = {
        "license": licence,
        "library_name": form.library,
        "pipeline_tag": what,
        "tags": [what, "vision", form.name],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _summary(source: Source, licence: str) -> str:
    rows, columns = source.size
    num = sum(value.numel() for value in (source.classifier or source.encoder).parameters())
    architecture = source.encoder.pretrained_cfg["architecture"]
    kind = (
        f"classifier of {count(len(source.class_names), 'class')}"
        if source.classifier
        else "encoder"
    )
    lines = [
        f"- {architecture}, {num / 1e6:,.2f} million parameters: {kind}, width {source.width}",
        f"- images {rows}x{columns}, {source.colours}",
    ]
    if source.class_names:
        more = len(source.class_names) - _MAX_CLASSES
        shown = ", ".join(source.class_names[:_MAX_CLASSES])
        lines.append(f"- classes: {shown}" + f" and {more} more" * (more > 0))
    if licence == NO_LICENCE:
        lines.append(
            "- licence: not stated; the owner has to state it, here and in `license` above"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- the run


def _training(path: str, config: dict[str, Any]) -> Iterator[str]:
    """Say what a run was: data, objective, steps, results; and the run that it started from."""
    if not config:
        yield "## Training\n\nNot recorded: the export was made from weights without a run."
        return
    yield "## Data"
    yield "\n".join(f"- {line}" for line in _data(config.get("data", {})))
    yield "## Objective"
    yield _objective(config)
    groups = {key: config[key] for key in _GROUPS if key in config}
    yield f"```yaml\n{yaml.safe_dump(groups, sort_keys=False)}```"
    yield "## Steps"
    yield _steps(Path(path), config)
    yield "## Results"
    yield _results(Path(path))
    init = config.get("encoder", {}).get("init", "none")
    if before := read_config(init):
        yield f"## What it started from: {_short(init)}"
        yield "\n".join(f"- {line}" for line in _data(before.get("data", {})))
        yield _objective(before)
        yield _steps(Path(init), before)
        yield _results(Path(init))


def _objective(config: dict[str, Any]) -> str:
    kind = config.get("target", {}).get("kind", "mean_colour")
    texts = [text for key, text in _OBJECTIVES.items() if key in config]
    return "\n".join(texts).format(target=_TARGETS.get(kind, f"target ({kind}) is"))


def _data(data: dict[str, Any]) -> Iterator[str]:
    for split in _SPLITS:
        spec = data.get(split)
        if spec:
            specs = spec if isinstance(spec, list) else [spec]
            names = ", ".join(_short(str(part)) for part in specs)
            yield f"{split}: {names}{_count(spec, f'data.{split}')}"


def _short(spec: str) -> str:
    """Name shards or a run without what is nobody's business: home folders, keys, commands."""
    if spec.startswith("pipe:"):
        return "a pipe"
    return public_name(spec) if is_remote(spec) else "/".join(Path(spec).parts[-2:])


def _count(spec: object, key: str) -> str:
    """Count what is indexed on this machine; nothing is fetched or scanned for it."""
    if not is_local(spec):
        return ""
    try:
        catalog = Catalog(spec, key, Storage())
        manifest = catalog.manifest()
    except (UserError, RunStopped, OSError):
        return ""
    if catalog.missing():
        return f" (shards: {len(catalog):,})"
    return f" (images: {manifest.num_samples:,}, shards: {len(catalog):,})"


def _results(run: Path) -> str:
    """Return the figures of result.json, or else the last ones of the records, as a table."""
    path, result = run / "metrics.jsonl", run / "result.json"
    figures: dict[str, Any] = {}
    if result.is_file():
        figures = json.loads(result.read_text())
    elif path.is_file():
        for record in read_records(path):
            figures |= {key: value for key, value in record.items() if _is_shown(key)}
    rows = [
        f"| {key} | {value:.6g} |"
        for key, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return "\n".join(["| figure | last value |", "|---|---|", *rows]) if rows else "None recorded."


def _is_shown(key: str) -> bool:
    is_own = key in ("step", "epoch", "train/loss", "train/accuracy")
    return is_own or (key.startswith("val/") and not key.endswith("_ratio"))


def _steps(run: Path, config: dict[str, Any]) -> str:
    """Say how long it was trained, and what it started from."""
    path, optim = run / "metrics.jsonl", config.get("optim", {})
    last = read_records(path)[-1:] if path.is_file() else []
    init = config.get("encoder", {}).get("init", "none")
    start = "random weights" if init == "none" else _short(init)
    done = [
        f"{r['step']:,} of {count(optim.get('steps', 0), 'step')}, {r['epoch']:.1f} epochs"
        for r in last
    ]
    size = f"batches of {optim.get('batch_size', 0):,} images"
    return f"Trained from {start}: {', '.join([*done, size])}."
