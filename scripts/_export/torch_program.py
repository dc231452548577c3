"""torch.export: one file, model.pt2, with the same inputs and outputs as the ONNX file."""

import io
from pathlib import Path

import torch
from torch import Tensor

from scripts._export.format import Format, Outputs, run_in_two_batches
from scripts._export.graph import (
    Graph,
    describe,
    export_arguments,
    make_folder,
    name_file,
    read_photo,
)
from scripts._export.source import Source

_FILE = "model.pt2"


def _check(source: Source) -> None:
    """Accept anything: a graph holds any head."""


def _write(source: Source, folder: Path) -> None:
    make_folder(source, folder)
    program = torch.export.export(Graph(source).eval(), **export_arguments(source))
    content = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program, content)
    (folder / _FILE).write_bytes(content.getbuffer())


@torch.no_grad()
def _run(folder: Path, images: Tensor) -> Outputs:
    module = torch.export.load(folder / _FILE).module()
    return run_in_two_batches(lambda part: module(part.float() / 255), images)


def _usage(source: Source, place: str) -> str:
    imports, file = name_file(place, _FILE)
    return f"""import numpy as np
import torch
{imports}{read_photo(source)}
model = torch.export.load({file}).module()
with torch.inference_mode():
    outputs = model(torch.from_numpy(images))
{source.output_names[-1]} = outputs["{source.output_names[-1]}"]"""


FORMAT = Format("torch", "pytorch", (), _check, _write, _run, _usage, describe)
