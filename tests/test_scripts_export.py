"""The exported folder: timm loads it, and what stands in its way is one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data.config import resolve_model_data_config

from pretrain.encoder import EncoderConfig, make_encoder, save_encoder

ROOT = Path(__file__).resolve().parents[1]


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/export.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a fine-tuned encoder for rectangular images, as a run would."""
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    encoder = make_encoder(config, (16, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    encoder.reset_classifier(3)
    run = tmp_path_factory.mktemp("run")
    save_encoder(encoder, run / "encoder")
    return run


def test_export_keeps_head_size_mean_and_std(saved: Path, tmp_path: Path) -> None:
    done = export(saved, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "largest difference of features after loading it back: " in done.stdout
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    original = timm.create_model(f"local-dir:{saved / 'encoder'}", pretrained=True).eval()
    images = torch.rand(2, 3, 16, 32)
    assert torch.equal(model(images), original(images))
    assert model(images).shape == (2, 3)
    data = resolve_model_data_config(model)
    assert data["input_size"] == (3, 16, 32)
    assert tuple(data["mean"]) == (0.4, 0.5, 0.6)
    assert tuple(data["std"]) == (0.2, 0.3, 0.4)
    assert model.global_pool == "avg"


def test_what_exists_is_not_overwritten(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = export(saved, tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: OUT={tmp_path} exists; name a new folder, or delete it first\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_without_an_encoder_is_refused(tmp_path: Path) -> None:
    done = export(tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "is no run or folder with an encoder" in done.stderr
    assert not (tmp_path / "out").exists()
