"""run.compile: what is compiled in the first step serves all of a run.

`torch.compile`'s first half alone, which decides that, so that nothing waits for a C++ compiler.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import RecompileError
from torch._dynamo.utils import counters

import pretrain.run
from data.settings import UserError
from pretrain.machine.graphs import Graphs
from pretrain.records.logs import read_records
from pretrain.training.config import RunConfig

MASK_FREE = ["encoder.sees_masked=false", "corruption.ratio=0.75"]
KEYS = {
    "paper": [],
    "blocks": ["corruption.kind=block"],
    "mask-free": MASK_FREE,
    "cross": [*MASK_FREE, "decoder.attention=cross", "corruption.predicted_ratio=0.5"],
    "selective": ["run.grad_checkpointing=selective"],
    "micro-batches": ["run.micro_batch_size=4"],
    "graphs": ["run.cuda_graphs=true"],
}


@pytest.fixture(autouse=True)
def refuses_to_compile_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
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


# ---------------------------------------------------------------- CUDA graphs


@pytest.mark.parametrize("more", [MASK_FREE, ["run.micro_batch_size=4"]])
def test_steps_that_are_recorded_are_the_same(
    more: list[str], tmp_path: Path, tiny: list[str]
) -> None:
    """To the bit, whether gradients are added up or not, and after a resume."""
    keys = [*tiny, *more, "optim.steps=10", "encoder.args.drop_path_rate=0.2", "run.compile=true"]
    keys += ["data.val_shards=null"]
    found: list[Any] = []
    for name in ("plain", "recorded"):
        torch._dynamo.reset()
        folder = tmp_path / name
        pretrain.run.main([*keys, f"run.cuda_graphs={name == 'recorded'}", f"run.dir={folder}"])
        found.append(results(folder))
    assert found[0] == found[1]
    torch._dynamo.reset()
    shutil.rmtree(folder / "checkpoints/step-00000010")
    pretrain.run.main([*keys, "run.cuda_graphs=true", f"run.dir={folder}"])  # on from step 7
    assert results(folder) == found[0]


def results(folder: Path) -> tuple[list[float], bytes]:
    losses = [record["train/loss"] for record in read_records(folder / "metrics.jsonl")]
    return losses, (folder / "checkpoints/step-00000010/model.safetensors").read_bytes()


def test_gradients_that_are_added_up_have_their_own_memory() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    graphs, images = Graphs(model), torch.ones(1, 2)
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    graphs(images).sum().backward()
    before = [parameter.grad for parameter in model.parameters()]
    graphs.own_gradients()
    after = [parameter.grad for parameter in model.parameters()]
    assert graphs.has_own_gradients
    assert before[:2] == after[:2] == [None, None]  # what has none is not trained from then on
    for old, new in zip(before[2:], after[2:], strict=True):
        assert old is not None
        assert new is not None
        assert torch.equal(old, new)
        assert old.data_ptr() != new.data_ptr()
    graphs.own_gradients()
    assert all(p.grad is kept for p, kept in zip(model.parameters(), after, strict=True))


def test_what_is_returned_is_not_the_graphs_own() -> None:
    class Kept(nn.Module):
        def forward(self, numbers: Tensor) -> dict[str, Tensor]:
            return {"numbers": numbers}

    numbers = torch.ones(2)
    [found] = Graphs(Kept())(numbers).values()
    assert torch.equal(found, numbers)
    assert found.data_ptr() != numbers.data_ptr()


def test_what_cannot_be_recorded_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    graphs, words = Graphs(nn.Linear(2, 2)), "run.cuda_graphs=true: torch does not record all of"
    graphs(torch.ones(1, 2))
    assert words not in caplog.text
    counters["inductor"]["cudagraph_skips"] += 1  # as inductor does, on a CPU in each graph
    for _ in range(2):
        graphs(torch.ones(1, 2))
    assert caplog.text.count(words) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "run.cuda_graphs=true records what is compiled; set run.compile=true"),
        ({"compile": True, "grad_checkpointing": "full"}, "cannot be had with run.grad_checkpoi"),
    ],
)
def test_graphs_of_what_cannot_be_recorded_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig(cuda_graphs=True, **keys)
