"""What only a GPU can show: half precision, and a resume that is exact there too."""

from pathlib import Path

import pytest
import torch

import pretrain.run
from pretrain.metrics import read_records

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in read_records(run / "metrics.jsonl")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_lowers_the_loss(tmp_path: Path, tiny: list[str], precision: str) -> None:
    pretrain.run.main([*tiny, f"run.dir={tmp_path}", f"run.precision={precision}"])
    found = losses(tmp_path)
    assert len(found) == 40
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def test_a_deterministic_run_is_the_same_twice(tmp_path: Path, tiny: list[str]) -> None:
    for name in ("one", "two"):
        arguments = [*tiny, f"run.dir={tmp_path / name}", "run.deterministic=true"]
        pretrain.run.main([*arguments, "run.precision=bf16"])
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
