"""The costs of a configuration, as lines and as a row of a table."""

from pathlib import Path

from scripts._describe.building import build
from scripts._describe.measuring import PRECISIONS, Costs, Transformer, measure

_COLUMNS = (
    "preset",
    "width",
    "depth",
    "heads",
    "tokens",
    "parameters",
    "GFLOPs an image",
    *(f"GiB, {precision}" for precision in PRECISIONS),
)


def lines(costs: Costs) -> list[str]:
    """Describe one configuration, a figure a line; the last line sums it up."""
    rows = {"encoder": costs.name, "image": f"{_by(costs.image)} pixels", **_shape(costs)}
    rows |= {
        "parameters": _million(costs.encoder_parameters + costs.other_parameters),
        "  of the encoder": _million(costs.encoder_parameters),
        "  of the rest": _million(costs.other_parameters),
        "FLOPs an image": f"{_giga(costs.encoder_flops)} G forward through the encoder",
        **_step(costs),
        "memory": f"{_gib(costs.state_bytes)} GiB weights, gradients, moments, fp32",
    }
    for precision, saved in costs.saved_bytes.items():
        whole = _gib(costs.state_bytes + saved)
        rows[f"  saved, {precision}"] = f"{_gib(saved)} GiB for backward, batch {costs.batch}"
        rows[f"  sum, {precision}"] = f"{whole} GiB; not measured on a GPU"
    return [*(f"{name:18}{value}" for name, value in rows.items()), summary(costs)]


def summary(costs: Costs) -> str:
    """Describe one configuration in a line, as the headers of configs/encoder have it."""
    memory = _gib(costs.state_bytes + costs.saved_bytes["bf16"])
    return (
        f"{_million(costs.encoder_parameters)} parameters, {_giga(costs.encoder_flops)} GFLOPs an "
        f"image, {memory} GiB to train {costs.batch} images in bf16"
    )


def _shape(costs: Costs) -> dict[str, str]:
    shape = costs.transformer
    if shape is None:
        return {}
    rows, columns = shape.grid
    return {
        "width": str(shape.width),
        "depth": f"{shape.depth} blocks",
        "heads": str(shape.heads),
        "patch": f"{_by(shape.patch)} pixels",
        "grid": f"{_by(shape.grid)} = {rows * columns} patches",
        "tokens": f"{shape.tokens}{_in_training(shape)}",
    }


def _in_training(shape: Transformer) -> str:
    """Say how many tokens a training step has, where they are others than the image's."""
    if shape.tokens_in_training == shape.tokens:
        return ""
    has_caption = shape.tokens_in_training > shape.tokens
    return f", {shape.tokens_in_training} {'with a caption' if has_caption else 'in training'}"


def _step(costs: Costs) -> dict[str, str]:
    if costs.step_flops is None:
        return {}
    return {"  in training": f"{_giga(costs.step_flops)} G forward and backward through the whole"}


def table(config: list[str], classes: int, batch: int) -> list[str]:
    """Make a Markdown table, a row for each file."""
    num_files = next((n for n, text in enumerate(config) if "=" in text), len(config))
    files, overrides = config[:num_files], config[num_files:]
    rows = [_COLUMNS, ("---", *["---:"] * (len(_COLUMNS) - 1))]
    for file in files:
        built = build([file, *overrides], classes)
        costs = measure(built, batch, has_step=False)
        rows.append((Path(file).stem, *_cells(costs)))
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cells(costs: Costs) -> list[str]:
    shape = costs.transformer
    sizes = [shape.width, shape.depth, shape.heads, shape.tokens] if shape else ["", "", "", ""]
    memory = [_gib(costs.state_bytes + saved) for saved in costs.saved_bytes.values()]
    flops = _giga(costs.encoder_flops)
    return [*map(str, sizes), _million(costs.encoder_parameters), flops, *memory]


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"


def _million(number: int) -> str:
    return f"{_rounded(number / 1e6)} M"


def _giga(number: int) -> str:
    return _rounded(number / 1e9)


def _gib(number: int) -> str:
    return _rounded(number / 2**30)


def _rounded(value: float) -> str:
    """Write three digits; below 1, two places."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
