"""The model card: what it is, what it was made from, how it is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data.index.catalog import Catalog
from data.settings import RunStopped, UserError
from data.storage.locations import Storage, is_remote, public_name
from data.text import count, name_some, percent
from finetune.results import best_cell
from pretrain.records.logs import read_records
from scripts._export.format import Format
from scripts._export.pictures import is_local
from scripts._export.source import Source, read_config

_MAX_CLASSES = 50
_SPLITS = ("shards", "val_shards", "train", "val")
_OBJECTIVES = {
    "corruption": "Masked patch prediction ([arXiv:2010.11929](https://arxiv.org/abs/2010.11929), "
    "B.1.2): patches are corrupted, and each one's {target} predicted. No labels are used. The "
    "class token gets no loss: read patch tokens or their average.",
    "loss": "Images with captions ([arXiv:2102.03334](https://arxiv.org/abs/2102.03334)): whether "
    "a caption is the image's own, and which words of it are masked, by the weights below.",
    "head": "Classification with labels.",
}
_TARGETS = {
    "mean_colour": "mean colour is",
    "colour_grid": "colours, in a grid of cells, are",
    "pixels": "pixels are",
    "normalised_pixels": "pixels, normalised, are",
    "words": "nearest of some patches learnt by k-means is",
}
_READINGS = {  # of a frozen encoder, by the probe's pooling
    "average": "the average of its patches",
    "class": "its class token",
    "both": "the average of its patches beside its class token",
    "attentive": "its patches behind one learned query",
    "efficient": "its patches behind several learned queries",
}
_GROUPS = ("loss", "text", "corruption", "target", "decoder", "objective", "head", "mix", "optim")
_OF_PATCHES = ("corruption", "target")  # of no effect where captions have all the weight


def write_card(
    source: Source, form: Format, place: str, licence: str | None, comparison: str
) -> str:
    """Return README.md for a folder or a repository of the hub.

    Args:
        source: What was exported.
        form: The format.
        place: Where its users find it: as `Format.usage` takes it.
        licence: The hub's identifier of a licence; None where none is stated.
        comparison: The largest difference after loading it back, in words.
    """
    parts = [
        _front_matter(source, form, licence),
        f"# {place.rpartition('/')[2].rpartition(':')[2]}",
        _summary(source, licence),
        "## How to load it",
        f"```python\n{form.usage(source, place)}\n```",
        "\n".join(f"- {line}" for line in [*form.describe(source), *source.left_out]),
        *_training(source.path, source.config),
        _frozen(source.path),
        "## Check",
        f"{comparison[0].upper()}{comparison[1:]}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(source: Source, form: Format, licence: str | None) -> str:
    what = source.task
    fields = {
        "license": licence or "other",
        "library_name": form.library,
        "pipeline_tag": what,
        "tags": [what, "vision", form.name],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _summary(source: Source, licence: str | None) -> str:
    rows, columns = source.size
    num = sum(value.numel() for value in source.model.parameters())
    architecture = source.encoder.pretrained_cfg["architecture"]
    names = source.class_names
    kind = f"{source.what}, width {source.width}"
    lines = [
        f"- {architecture}, {num / 1e6:,.2f} million parameters: {kind}",
        f"- images {rows}x{columns}, {source.colours}",
    ]
    if names:
        lines.append(f"- classes: {name_some(names, _MAX_CLASSES)}")
    if licence in (None, "other"):
        lines.append(
            "- licence: not stated; the owner has to state it, here and in `license` above"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- the run


def _training(path: str, config: dict[str, Any]) -> Iterator[str]:
    """Yield a run's data, objective, steps and results; and the run that it started from."""
    if not config:
        yield "## Training\n\nNot recorded: the export was made from weights without a run."
        return
    data, objective, steps, results = _story(path, config)
    groups = {key: config[key] for key in _groups_of(config)}
    yield f"## Data\n\n{data}"
    yield f"## Objective\n\n{objective}"
    yield f"```yaml\n{yaml.safe_dump(groups, sort_keys=False)}```"
    yield f"## Steps\n\n{steps}"
    yield f"## Results\n\n{results}"
    init = _init(config)
    if before := read_config(init):
        yield f"## What it started from: {_short(init)}"
        yield from _story(init, before)


def _groups_of(config: dict[str, Any]) -> list[str]:
    """Return the groups of a run's keys that tell of its objective."""
    has_patches = config.get("loss", {}).get("patches", 1) > 0
    return [key for key in _GROUPS if key in config and (has_patches or key not in _OF_PATCHES)]


def _story(path: str, config: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return a run's data, objective, steps and results."""
    metrics = Path(path, "metrics.jsonl")
    records = read_records(metrics) if metrics.is_file() else []
    kind = config.get("target", {}).get("kind", "mean_colour")
    objectives = "\n".join(_OBJECTIVES[key] for key in _groups_of(config) if key in _OBJECTIVES)
    return (
        "\n".join(f"- {line}" for line in _data(config.get("data", {}))),
        objectives.format(target=_TARGETS.get(kind, f"target ({kind}) is")),
        _steps(records, config),
        _results(Path(path, "result.json"), records),
    )


def _data(data: dict[str, Any]) -> Iterator[str]:
    for split in _SPLITS:
        if spec := data.get(split):
            specs = spec if isinstance(spec, list) else [spec]
            names = ", ".join(_short(str(part)) for part in specs)
            yield f"{split}: {names}{_count(spec, f'data.{split}')}"
    if ratio := data.get("val_ratio"):
        yield f"set aside for validation, and not trained on: {percent(ratio)}"


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
        num_samples = catalog.manifest().num_samples
    except (UserError, RunStopped, OSError):
        return ""
    images = "" if catalog.missing() else f"images: {num_samples:,}, "
    return f" ({images}shards: {len(catalog):,})"


def _init(config: dict[str, Any]) -> str:
    return config.get("encoder", {}).get("init") or "none"


def _steps(records: list[dict[str, Any]], config: dict[str, Any]) -> str:
    optim, init = config.get("optim", {}), _init(config)
    start = "random weights" if init == "none" else _short(init)
    parts = [
        f"{last['step']:,} of {count(optim.get('steps', 0), 'step')}, {last['epoch']:.1f} epochs"
        for last in records[-1:]
    ]
    size = f"batches of {optim.get('batch_size', 0):,} images"
    return f"Trained from {start}: {', '.join([*parts, size])}."


def _results(result: Path, records: list[dict[str, Any]]) -> str:
    """Return the figures of result.json, or else the last ones of the records, as a table."""
    figures: dict[str, Any] = {}
    if result.is_file():
        figures = json.loads(result.read_text())
    else:
        for record in records:
            figures |= {key: value for key, value in record.items() if _is_shown(key)}
    rows = [
        f"| {key} | {value:.6g} |"
        for key, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return "\n".join(["| figure | last value |", "|---|---|", *rows]) if rows else "None recorded."


def _frozen(path: str) -> str:
    """Tell how the encoder is read best as it is, if the run's probe measured it."""
    best = best_cell(path)
    if not best:
        return ""
    return (
        "## With the encoder frozen\n\n"
        f"A linear layer on {_READINGS[best['pooling']]}, after block {best['layer']}: "
        f"{percent(best['accuracy/linear_top1'])} of {count(best['num_val'], 'image')} right. The "
        f"layer and what is read were chosen by the loss ({best['held_out_loss']:.4g}) on a tenth "
        "of the training images."
    )


def _is_shown(key: str) -> bool:
    is_own = key in ("step", "epoch", "train/loss", "train/accuracy")
    return is_own or (key.startswith("val/") and not key.endswith("_ratio"))
