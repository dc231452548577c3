"""Class weights in the training loss."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from torch.nn import functional as F

import finetune.probe
from data.labels.balance import class_weights, positive_weights
from data.settings import UserError
from data.shards import write_shard
from finetune.config import HeadConfig, MixConfig
from finetune.head import Classifier
from pretrain.records.logs import read_records
from tests.conftest import make_sample
from tests.finetune.test_run import result
from tests.launching import run_ranks


def test_weights_go_with_the_inverse_of_the_frequency() -> None:
    labels = np.array([0] * 6 + [1] * 2 + [3])
    weights = class_weights(labels, 4)
    assert weights.tolist() == [0.5, 1.5, 1.0, 3.0]
    assert weights[labels].mean() == 1
    # of 4 images, class 0 is in all, 1 in one, 2 in none
    many = positive_weights(np.array([0, 0, 1, 0, 0]), 3, 4)
    assert many.tolist() == [1.0, 3.0, 1.0]


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_they_are_in_the_training_loss_alone(is_multi_label: bool) -> None:
    torch.manual_seed(0)
    weights = torch.tensor([0.5, 1.0, 4.0])
    model = Classifier(
        timm.create_model("test_vit", num_classes=3),
        ["a", "b", "c"],
        HeadConfig(label_smoothing=0.1),
        is_multi_label=is_multi_label,
        mix=MixConfig(mixup=0.8),
        weights=weights.numpy(),
    )
    torch.nn.init.normal_(model.last_layer.weight)
    assert "class_loss.class_weights" not in model.state_dict()  # checkpoints are as without
    logits, label = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    targets = F.one_hot(label, 3).float() * 0.7 + 0.1  # as mixing and smoothing leave them
    model.train()
    logs = logits.sigmoid().log() if is_multi_label else logits.log_softmax(1)
    others = (-logits).sigmoid().log() * (1 - targets) if is_multi_label else torch.zeros(6, 3)
    terms = -(weights * targets * logs + others)
    expected = terms.mean(1) if is_multi_label else terms.sum(1)
    assert torch.allclose(model.class_loss._losses(logits, targets), expected, atol=1e-6)
    model.eval()
    plain = -(targets * logs + others)
    expected = plain.mean(1) if is_multi_label else plain.sum(1)
    assert torch.allclose(model.class_loss._losses(logits, targets), expected, atol=1e-6)


def test_losses_are_those_of_one_rank(tmp_path: Path, tiny_finetune: list[str]) -> None:
    told = [*tiny_finetune, "data.balance=true", "optim.steps=4", "run.eval_every=2"]
    told += ["run.keep_best=true", f"data.train={tmp_path}/odd.tar"]
    write_odd(tmp_path / "odd.tar")
    losses: list[list[float]] = []
    for world in (1, 2):
        run = tmp_path / f"run-{world}"
        run_ranks([*told, f"run.dir={run}"], world, tmp_path, script="finetune.run")
        records = read_records(run / "metrics.jsonl")
        losses.append([record["train/loss"] for record in records])
        best = max(records, key=lambda r: (r.get("val/accuracy_balanced", -1), -r["step"]))
        assert result(run)["best_step"] == best["step"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def write_odd(path: Path) -> None:
    """Write 24 images, half of which are of class 0."""
    numbers = [n for n in range(200, 272) if n % 3 == 0][:12]
    numbers += [n for n in range(200, 300) if n % 3 != 0][:12]
    write_shard(path, map(make_sample, numbers))


def test_a_frozen_encoder_is_measured_without(tmp_path: Path, tiny_finetune: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    own = ("optim.", "run.", "head.")
    told = [argument for argument in tiny_finetune if not argument.startswith(own)]
    with pytest.raises(UserError, match=r"data.balance=true, but a frozen encoder is measured by"):
        finetune.probe.main([*told, "data.balance=true", f"probe.dir={tmp_path}"])
