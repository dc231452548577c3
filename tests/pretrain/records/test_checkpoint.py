"""Checkpoints: whole or not at all, checked by hash, restored to the bit, without pickle."""

import json
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from data.settings import UserError
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder
from pretrain.objective.config import CorruptionConfig, TargetConfig
from pretrain.objective.model import MaskedPatchModel
from pretrain.records import checkpoint
from pretrain.training import state
from pretrain.training.config import OptimConfig
from pretrain.training.optim import make_optimizer
from pretrain.training.state import Training


def make(algorithm: str = "adamw", ema: bool = False, width: int = 16, **more: Any) -> Training:
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, embed_dim=width, depth=1, num_heads=2
    )
    encoder = make_encoder(config, (8, 8))
    model = MaskedPatchModel(encoder, CorruptionConfig(), TargetConfig(bits=1))
    optimizer = make_optimizer(model, encoder, OptimConfig(algorithm=algorithm, lr=0.1, **more))
    return Training(model, optimizer, ModelEmaV3(model, decay=0.5) if ema else None, None)


def train(training: Training, first: int, last: int) -> None:
    """Take steps whose gradients depend on the step alone."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in training.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        training.optimizer.step()
        if training.ema is not None:
            training.ema.update(training.model)


def commit(run: Path, step: int, training: Training | None = None, keep: int = 0) -> Path:
    training = training or make()
    with checkpoint.writing(run, step) as temporary:
        training.save(temporary, {"step": step, "shards": "abc"}, training.collect())
        return checkpoint.commit(temporary, keep)


def tensors(training: Training) -> dict[str, Tensor]:
    """Return all that training changes."""
    found = {f"model.{k}": v for k, v in training.model.state_dict().items()}
    for number, values in training.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{k}": v for k, v in values.items() if v is not None}
    if training.ema is not None:
        found |= {f"ema.{k}": v for k, v in training.ema.module.state_dict().items()}
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- what it holds


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": True},
        {"algorithm": "sgd"},
        {"algorithm": "sgd", "momentum": 0.0},
        {"layer_decay": 0.5, "ema": True},
    ],
)
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = make(**options)
    train(whole, 0, 3)
    folder = commit(tmp_path, 3, whole)
    restored = make(**options)
    train(restored, 50, 51)  # all of it must be replaced
    restored.load(folder, checkpoint.read_state(folder))
    for training in (whole, restored):
        train(training, 3, 6)
    expected, found = tensors(whole), tensors(restored)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name


def test_the_encoder_holds_the_averaged_weights(tmp_path: Path) -> None:
    training = make(ema=True)
    train(training, 0, 2)
    encoder = load_encoder(commit(tmp_path, 2, training))
    best: Any = training.best
    weight = best.encoder.patch_embed.proj.weight
    assert torch.equal(encoder.patch_embed.proj.weight, weight)
    raw: Any = training.model
    assert not torch.equal(raw.encoder.patch_embed.proj.weight, weight)


def test_load_weights_takes_the_averaged_ones(tmp_path: Path) -> None:
    training = make(ema=True)
    train(training, 0, 2)
    model = make().model
    state.load_weights(model, commit(tmp_path, 2, training))
    for name, value in training.best.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    with pytest.raises(UserError, match="holds another model than the configuration"):
        state.load_weights(make(width=32).model, tmp_path / "checkpoints/step-00000002")


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    training = make(ema=True)
    train(training, 0, 1)
    folder = commit(tmp_path, 1, training)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        assert not zipfile.is_zipfile(path)
        with pytest.raises(Exception, match=r".*"), path.open("rb") as file:
            pickle.load(file)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                assert len(list(opened.keys())) > 0
        else:
            assert isinstance(json.loads(path.read_text()), dict)


def test_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = commit(tmp_path, 1)
    with pytest.raises(UserError, match="holds another encoder or head") as caught:
        make(width=32).load(folder, checkpoint.read_state(folder))
    assert "\n" not in str(caught.value)


def test_constants_that_differ_are_named(tmp_path: Path) -> None:
    folder = commit(tmp_path, 1)
    saved = checkpoint.read_state(folder)
    checkpoint.check_constants(folder, saved, {"shards": "abc"})
    with pytest.raises(UserError, match="shards was abc, now xyz"):
        checkpoint.check_constants(folder, saved, {"shards": "xyz"})


# ---------------------------------------------------------------- whole or not at all


def test_the_manifest_covers_every_file(tmp_path: Path) -> None:
    folder = commit(tmp_path, 1)
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert manifest.keys() == files - {checkpoint.MANIFEST}
    assert {"model.safetensors", "optimizer.safetensors", "state.json"} < manifest.keys()
    for name in manifest:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoint.recover_newest(tmp_path) is None
        (folder / name).write_bytes(content)
        assert checkpoint.recover_newest(tmp_path) == folder


def cut_a_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lose_a_file(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).unlink()


def tear_the_manifest(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).write_text('{"model.safetensors": "12')


@pytest.mark.parametrize("damage", [cut_a_file, lose_a_file, lose_the_manifest, tear_the_manifest])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    before, newest = commit(tmp_path, 9), commit(tmp_path, 10)
    assert checkpoint.recover_newest(tmp_path) == newest
    damage(newest)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.recover_newest(tmp_path) == before
    assert f"{newest} is damaged" in caplog.text
    assert commit(tmp_path, 10) == newest  # written again over what is damaged
    assert checkpoint.recover_newest(tmp_path) == newest


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert checkpoint.recover_newest(tmp_path) is None


def test_what_a_kill_leaves_behind_is_removed(tmp_path: Path) -> None:
    committed = commit(tmp_path, 1)
    left_over = tmp_path / "checkpoints/.writing-step-00000002"
    left_over.mkdir()
    (left_over / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest_intact(tmp_path) == committed
    assert left_over.exists()
    assert checkpoint.recover_newest(tmp_path) == committed
    assert names(tmp_path / "checkpoints") == ["step-00000001"]


def test_writing_starts_from_an_empty_folder_and_a_failure_leaves_none(tmp_path: Path) -> None:
    left_over = tmp_path / "checkpoints/.writing-step-00000002"
    left_over.mkdir(parents=True)
    (left_over / "old").write_text("x")
    with checkpoint.writing(tmp_path, 2) as folder:
        assert names(folder) == []
        (folder / "new").write_text("x")
    assert names(tmp_path / "checkpoints") == []


def test_a_manifest_that_lists_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    (commit(tmp_path, 3) / "manifest.json").write_text("{}")
    assert checkpoint.recover_newest(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        commit(tmp_path, step, keep=2)
    assert names(tmp_path / "checkpoints") == ["step-00000015", "step-00000020"]
    commit(tmp_path, 25, keep=0)
    assert len(names(tmp_path / "checkpoints")) == 3


def test_a_copy_that_the_user_set_aside_is_no_checkpoint(tmp_path: Path) -> None:
    """Its name sorts behind all steps: a run would resume from it, and prune the others."""
    copy = commit(tmp_path, 5).rename(tmp_path / "checkpoints/step-of-mine")
    newest = [commit(tmp_path, step, keep=1) for step in (10, 15)][-1]
    assert checkpoint.recover_newest(tmp_path) == newest
    assert names(tmp_path / "checkpoints") == [newest.name, copy.name]


def test_the_encoder_link_follows_the_newest(tmp_path: Path) -> None:
    for step in (1, 2):
        commit(tmp_path, step)
        link = tmp_path / "encoder"
        assert link.is_symlink()
        assert str(link.readlink()) == f"checkpoints/step-{step:08d}/encoder"  # the run may move
        assert (link / "config.json").is_file()
    assert names(tmp_path) == ["checkpoints", "encoder"]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert load_encoder(moved).embed_dim == 16


def test_a_copy_that_followed_the_link_is_refused_in_one_line(tmp_path: Path) -> None:
    commit(tmp_path, 1)
    (tmp_path / "encoder").unlink()
    (tmp_path / "encoder").mkdir()
    with pytest.raises(
        UserError, match="encoder is no link into the newest checkpoint, and no copy"
    ):
        checkpoint.recover_newest(tmp_path)
