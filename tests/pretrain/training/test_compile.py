"""run.compile: what is compiled in the first step serves all of a run.

`torch.compile`'s first half alone, which decides that, so that nothing waits for a C++ compiler.
"""

from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import RecompileError
from torch._dynamo.utils import counters

import pretrain.run
from pretrain.records.logs import read_records

MASK_FREE = ["encoder.sees_masked=false", "corruption.ratio=0.75"]
KEYS = {
    "paper": [],
    "blocks": ["corruption.kind=block"],
    "mask-free": MASK_FREE,
    "cross": [*MASK_FREE, "decoder.attention=cross", "corruption.predicted_ratio=0.5"],
    "selective": ["run.grad_checkpointing=selective"],
    "micro-batches": ["run.micro_batch_size=4"],
}


@pytest.fixture(autouse=True)
def refuses_to_compile_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", KEYS)
def test_a_run_compiles_its_steps_once(name: str, tmp_path: Path, tiny: list[str]) -> None:
    keys = ["run.compile=true", "data.val_shards=null", "optim.steps=8", f"run.dir={tmp_path}"]
    pretrain.run.main([*tiny, *keys, *KEYS[name]])
    assert len(read_records(tmp_path / "metrics.jsonl")) == 8
    assert counters["stats"]["unique_graphs"] >= 1


class Own(nn.Module):
    """What torch 2.11 compiles, as it does not do with its own modules."""

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers * (2 if self.training else 3)


def test_a_model_that_changes_is_refused_here() -> None:
    model = Own()
    model.compile()
    model(torch.ones(2, 4))
    with pytest.raises(RecompileError):
        model.eval()(torch.ones(3, 4))
