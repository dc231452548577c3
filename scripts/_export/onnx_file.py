"""ONNX: one file, model.onnx, checked in onnxruntime."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.encoder.position_blocks import RelativeAttention
from scripts._export.format import Format, Outputs, run_in_two_batches
from scripts._export.graph import (
    INPUT,
    Graph,
    describe,
    export_arguments,
    make_folder,
    name_file,
    read_photo,
)
from scripts._export.source import Source

_FILE = "model.onnx"
_MAX_BYTES = 1_900_000_000  # a file of protobuf holds 2 GiB; larger weights go beside it


def _check(source: Source) -> None:
    """Accept anything: a graph holds any head."""


def _write(source: Source, folder: Path) -> None:
    make_folder(source, folder)
    graph = Graph(source).eval()
    num_bytes = sum(value.numel() * value.element_size() for value in graph.parameters())
    with _plain_relative_attention(graph):
        torch.onnx.export(
            graph,
            f=folder / _FILE,
            input_names=[INPUT],
            output_names=source.output_names,
            dynamo=True,
            external_data=num_bytes > _MAX_BYTES,
            verbose=False,
            **export_arguments(source),
        )


@contextmanager
def _plain_relative_attention(graph: Graph) -> Generator[None]:
    """Leave the fused kernel where attention has a bias: torch's exporter fails at its result."""
    layers: list[Any] = [layer for layer in graph.modules() if isinstance(layer, RelativeAttention)]
    fused = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield
    finally:
        for layer, is_fused in zip(layers, fused, strict=True):
            layer.fused_attn = is_fused


def _run(folder: Path, images: Tensor) -> Outputs:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(folder / _FILE)
    names = [output.name for output in session.get_outputs()]

    def run(part: Tensor) -> Outputs:
        values = session.run(names, {INPUT: (part.float() / 255).numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run_in_two_batches(run, images)


def _usage(source: Source, place: str) -> str:
    imports, file = name_file(place, _FILE)
    names = source.output_names
    return f"""import numpy as np
import onnxruntime
{imports}{read_photo(source)}
session = onnxruntime.InferenceSession({file})
[{", ".join(names)}] = session.run({names}, {{"{INPUT}": images}})"""


FORMAT = Format(
    "onnx", "onnx", ("onnx", "onnxscript", "onnxruntime"), _check, _write, _run, _usage, describe
)
