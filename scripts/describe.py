"""Say what a configuration costs, before anything is trained: no data are read, nothing is held.

    python scripts/describe.py CONFIG.yaml [CONFIG.yaml ...] [key.sub=value ...] [--batch 32]
    python scripts/describe.py --table configs/encoder/*.yaml [key.sub=value ...]

CONFIG.yaml is of pretraining or fine-tuning, or a preset of configs/encoder alone. Several are
merged as a run merges them; with --table each is described on its own, in a row.

A multiply-add is 2 FLOPs; matrix products, convolutions and attention are counted. Training memory
is weights, gradients and the optimizer's moments (with adamw 16 bytes a parameter), and what a
forward pass of --batch images keeps for the backward pass, with fused attention. It is a lower
bound: what lives for a moment within a pass comes on top. No GPU is measured.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below, which take seconds

from data.settings import OneLineParser, require, require_utf8, run_entry_point
from scripts._describe.building import build
from scripts._describe.measuring import PRECISIONS, Costs, measure

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


def main(arguments: list[str]) -> None:
    """Run `python scripts/describe.py ARGUMENTS`."""
    require_utf8(arguments)
    options = _parse(arguments)
    if options.table:
        print("\n".join(_table(options)))
    else:
        print("\n".join(lines(measure(build(options.config, options.classes), options.batch))))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("config", nargs="+", metavar="CONFIG.yaml | key.sub=value", help="as a run takes them")
    option("--batch", type=int, default=32, help="images of a forward pass (32)")
    option("--classes", type=int, default=1000, help="of a fine-tuned head (1000)")
    option("--table", action="store_true", help="one row for each CONFIG.yaml")
    options = parser.parse_intermixed_args(arguments)
    for key in ("batch", "classes"):
        value = getattr(options, key)
        require(value > 0, f"--{key}={value} must be above 0")
    require("=" not in options.config[0], f"no CONFIG.yaml stands before {options.config[0]}")
    return options


# ---------------------------------------------------------------- saying it


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
    fewer = "" if shape.tokens == shape.tokens_in_training else f", {shape.tokens_in_training}"
    rows, columns = shape.grid
    return {
        "width": str(shape.width),
        "depth": f"{shape.depth} blocks",
        "heads": str(shape.heads),
        "patch": f"{_by(shape.patch)} pixels",
        "grid": f"{_by(shape.grid)} = {rows * columns} patches",
        "tokens": f"{shape.tokens}{fewer and fewer + ' in training'}",
    }


def _step(costs: Costs) -> dict[str, str]:
    if costs.step_flops is None:
        return {}
    return {"  in training": f"{_giga(costs.step_flops)} G forward and backward through the whole"}


def _table(options: argparse.Namespace) -> list[str]:
    """Make a Markdown table, a row for each file."""
    num_files = next(
        (n for n, text in enumerate(options.config) if "=" in text), len(options.config)
    )
    files, overrides = options.config[:num_files], options.config[num_files:]
    rows = [_COLUMNS, ("---", *["---:"] * (len(_COLUMNS) - 1))]
    for file in files:
        built = build([file, *overrides], options.classes)
        costs = measure(built, options.batch, has_step=False)
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


if __name__ == "__main__":
    run_entry_point(main)
