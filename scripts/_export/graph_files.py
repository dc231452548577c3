"""ONNX's and torch.export's files of a graph, with the same inputs and outputs."""

import io
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.encoder.position_blocks import RelativeAttention
from scripts._export.format import Outputs
from scripts._export.graph import INPUT, Graph, Run, export_arguments, graph_format
from scripts._export.source import Source

_MAX_BYTES = 1_900_000_000  # a file of protobuf holds 2 GiB; larger weights go beside it

# ---------------------------------------------------------------- ONNX


def _save_onnx(graph: Graph, source: Source, path: Path) -> None:
    num_bytes = sum(value.numel() * value.element_size() for value in graph.parameters())
    with _plain_relative_attention(graph):
        torch.onnx.export(
            graph,
            f=path,
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


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> Outputs:
        values = session.run(names, {INPUT: images.numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run


def _use_onnx(source: Source, file: str) -> str:
    names = source.output_names
    return f"""session = onnxruntime.InferenceSession({file})
[{", ".join(names)}] = session.run({names}, {{"{INPUT}": images}})"""


ONNX = graph_format(
    "onnx",
    "onnx",
    "model.onnx",
    ("onnx", "onnxscript", "onnxruntime"),
    _save_onnx,
    _load_onnx,
    _use_onnx,
)

# ---------------------------------------------------------------- torch.export


def _save_torch(graph: Graph, source: Source, path: Path) -> None:
    content = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(torch.export.export(graph, **export_arguments(source)), content)
    path.write_bytes(content.getbuffer())


def _load_torch(path: Path) -> Run:
    return torch.export.load(path).module()


def _use_torch(source: Source, file: str) -> str:
    last = source.output_names[-1]
    return f"""model = torch.export.load({file}).module()
with torch.inference_mode():
    outputs = model(torch.from_numpy(images))
{last} = outputs["{last}"]"""


TORCH = graph_format("torch", "pytorch", "model.pt2", (), _save_torch, _load_torch, _use_torch)
