"""The export as a user runs it: what is written, said and refused; the card; the push."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from timm.data.config import resolve_model_data_config

import finetune.probe
import finetune.run
import pretrain.run
import scripts._export.export
import scripts.export
from data.settings import RunStopped, UserError
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from scripts._export.timm_folder import FORMAT
from tests.conftest import MountDisk, make_png
from tests.hub_server import TOKEN, hub_server
from tests.launching import run_forked

ROOT = Path(__file__).resolve().parents[2]
Printed = pytest.CaptureFixture[str]


def export(*arguments: object) -> None:
    scripts.export.main(list(map(str, arguments)))


def start(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/export.py"), *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=kept | environment
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a classifier for rectangular images, as a run would."""
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    encoder = make_encoder(config, (16, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    encoder.reset_classifier(3)
    run = tmp_path_factory.mktemp("run")
    save_encoder(encoder, run / "encoder")
    return run


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    run = tmp_path_factory.mktemp("pretrained") / "mine"
    pretrain.run.main([*tiny, "optim.steps=4", "run.eval_every=2", f"run.dir={run}"])
    return run


@pytest.fixture(scope="module")
def tuned(
    tmp_path_factory: pytest.TempPathFactory, pretrained: Path, tiny_finetune: list[str]
) -> Path:
    run = tmp_path_factory.mktemp("tuned") / "mine"
    told = [f"encoder.init={pretrained}", "head.pooling=class", "optim.steps=4", "optim.lr=0.5"]
    settings = [key for key in tiny_finetune if not key.startswith("encoder.")]
    finetune.run.main([*settings, *told, f"run.dir={run}"])
    return run


# ---------------------------------------------------------------- timm


def test_a_timm_folder_keeps_head_size_mean_and_std(
    saved: Path, tmp_path: Path, capsys: Printed
) -> None:
    export(saved, tmp_path / "out")
    assert "largest difference after loading it back, on 8 images of " in capsys.readouterr().out
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


def test_without_the_head_an_encoder_is_left(saved: Path, tmp_path: Path) -> None:
    export(saved, tmp_path / "out", "--no-head")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert model(torch.rand(2, 3, 16, 32)).shape == (2, 32)
    assert "label_names" not in (tmp_path / "out/config.json").read_text()


def test_feature_maps_and_other_sizes_are_to_be_had(pretrained: Path, tmp_path: Path) -> None:
    export(pretrained, tmp_path / "out")
    name, images = f"local-dir:{tmp_path / 'out'}", torch.rand(2, 3, 16, 16)
    kept: dict[str, Any] = {"pretrained": True}
    maps: Any = timm.create_model(name, features_only=True, out_indices=(0, 1), **kept).eval()
    whole: Any = timm.create_model(name, pretrained=True).eval()
    with torch.no_grad():
        found = maps(images)
        expected = whole.forward_intermediates(images, intermediates_only=True)
    assert [tuple(part.shape) for part in found] == [(2, 32, 4, 4)] * 2
    torch.testing.assert_close(found, expected)

    larger: Any = timm.create_model(name, pretrained=True, img_size=(24, 32)).eval()
    assert larger(torch.rand(2, 3, 24, 32)).shape == (2, 32)
    assert larger.pos_embed.shape == (1, 1 + 6 * 8, 32)
    torch.testing.assert_close(larger.pos_embed[:, 0], whole.pos_embed[:, 0])


# ---------------------------------------------------------------- the card


@pytest.mark.parametrize("form", ["timm", "transformers", "onnx", "torch"])
@pytest.mark.parametrize("kind", ["pretrained", "tuned"])
def test_what_the_card_says_runs(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    form: str,
) -> None:
    run = request.getfixturevalue(kind)
    export(run, tmp_path / "mine-out", "--to", form)
    card = (tmp_path / "mine-out/README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    Image.new("RGB", (30, 20), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    last = next(names[n] for n in ("logits", "features", "output") if n in names)
    assert last.shape == (1, 3 if kind == "tuned" else 32)


def test_the_card_says_what_it_was_made_from(
    tuned: Path, pretrained: Path, shards: Path, tmp_path: Path
) -> None:
    export(tuned, tmp_path / "out", "--license", "apache-2.0")
    card = (tmp_path / "out/README.md").read_text()
    front, _, text = card.removeprefix("---\n").partition("---\n")
    fields = yaml.safe_load(front)
    assert (fields["license"], fields["library_name"]) == ("apache-2.0", "timm")
    assert fields["pipeline_tag"] == "image-classification"
    assert "- classes: 0, 1, 2" in text
    assert f"- train: {shards.name}/train-*.tar (images: 36, shards: 3)" in text
    assert "Classification with labels." in text
    assert f"Trained from {'/'.join(pretrained.parts[-2:])}: 4 of 4 steps" in text
    assert "| accuracy" in text  # of result.json
    assert "Masked patch prediction" in text  # of the run that it started from
    assert "Largest difference after loading it back, on 8 images of data.val: " in text
    assert str(shards) not in card  # nobody's home folder goes to a hub
    assert "licence" not in text


def test_the_card_says_how_the_frozen_encoder_is_read_best(
    pretrained: Path, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(pretrained, run, symlinks=True)
    export(run, tmp_path / "without")
    assert "frozen" not in (tmp_path / "without/README.md").read_text()
    images = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-0.tar"]
    told = [f"encoder.init={run}", *images, "data.workers=0", "probe.layers=all"]
    heads = ["probe.heads=[linear,knn,attentive]", "probe.steps=60", "probe.rates=[0.01]"]
    finetune.probe.main([*told, *heads])
    result = json.loads((run / "probe/result.json").read_text())
    # an answer of the validation images may not choose
    best = min(result["cells"], key=lambda cell: cell["held_out_loss"])
    export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    read = {"average": "the average of its patches", "attentive": "its patches behind one learned"}
    assert f"A linear layer on {read[best['pooling']]}" in card
    assert f"after block {best['layer']}: {100 * best['accuracy/linear_top1']:.1f} % of 10" in card
    assert f"loss ({best['held_out_loss']:.4g}) on a tenth" in card
    (run / "probe/result.json").write_text(json.dumps(result | {"encoder.sha256": "another"}))
    export(run, tmp_path / "stale")
    assert "frozen" not in (tmp_path / "stale/README.md").read_text()


def test_without_a_licence_the_owner_is_asked_for_one(saved: Path, tmp_path: Path) -> None:
    export(saved, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert "licence: not stated" in card
    assert "the export was made from weights without a run" in card


def test_secrets_in_locations_stay_out_of_the_card(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "encoder").symlink_to(pretrained / "encoder")
    text = (pretrained / "config.yaml").read_text()
    config = yaml.safe_load(text)
    config["data"]["shards"] = ["https://me:letmein@host/a.tar?signature=abc", "pipe:curl -H key"]
    config["data"]["val_shards"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "- shards: https://***, a pipe\n" in card
    assert not [secret for secret in ("letmein", "signature", "curl") if secret in card]


# ---------------------------------------------------------------- images


def test_images_may_be_named(saved: Path, tmp_path: Path, capsys: Printed) -> None:
    for number in range(3):
        Image.new("RGB", (40, 30 + number), (90 * number, 50, 20)).save(tmp_path / f"{number}.png")
    export(saved, tmp_path / "out", "--images", tmp_path)
    assert f"on 3 images of {tmp_path}/0.png and 2 more: " in capsys.readouterr().out
    export(saved, tmp_path / "two", "--images", tmp_path / "1.png")
    assert f"on 1 image of {tmp_path}/1.png: " in capsys.readouterr().out


@pytest.mark.slow
def test_one_image_is_enough_for_a_graph(saved: Path, tmp_path: Path, capsys: Printed) -> None:
    Image.new("RGB", (40, 30), "green").save(tmp_path / "1.png")
    export(saved, tmp_path / "out", "--images", tmp_path / "1.png", "--to", "torch")
    assert "on 1 image of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"), [("no.png", "does not exist"), ("bad.png", "no image format that Pillow")]
)
def test_images_that_cannot_be_read(saved: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=text):
        export(saved, tmp_path / "out", "--images", tmp_path / name)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- refusals


def test_what_exists_is_not_overwritten(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run_forked([sys.executable, str(ROOT / "scripts/export.py"), str(saved), str(tmp_path)])
    assert done.returncode == 2
    assert done.stderr == f"error: OUT={tmp_path} exists; name a new folder, or delete it first\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run or folder with an encoder"):
        export(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["transformers", "onnx"])
def test_a_missing_package_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def find(name: str) -> object:
        return None if name in ("transformers", "onnxscript") else find_spec(name)

    monkeypatch.setattr("scripts._export.format.find_spec", find)
    with pytest.raises(UserError) as raised:
        export("no-run", tmp_path / "out", "--to", form)
    assert str(raised.value) == (
        f"--to {form} needs the packages of the extra [export]: pip install -e '.[export]' here"
    )


def test_a_difference_over_the_tolerance_writes_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(folder: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: value + 2e-4 for name, value in FORMAT.run(folder, images).items()}

    monkeypatch.setitem(scripts._export.export.FORMATS, "timm", replace(FORMAT, run=shifted))
    with pytest.raises(RunStopped, match=r"differs from .*: tokens 0.0002, logits 0.0002, over"):
        export(saved, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the hub


def test_a_push_brings_the_whole_folder_to_the_hub(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with hub_server() as hub:
        done = start(saved, out, "--push", "me/mine", HF_HOME=str(tmp_path), **hub.environment())
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"pushed to {hub.endpoint}/me/mine\n")
        assert hub.repositories["me/mine"]["visibility"] == "private"
        assert hub.files["me/mine"] == {file.name: file.read_bytes() for file in out.iterdir()}
    assert 'timm.create_model("hf-hub:me/mine", pretrained=True)' in (out / "README.md").read_text()


@pytest.fixture
def hub_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str | None], None]:
    """Send huggingface_hub of this process to an address, with a token or none."""

    def send(endpoint: str, token: str | None) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)

    return send


def test_without_a_network_one_line_says_so(
    saved: Path, tmp_path: Path, hub_of: Callable[[str, str | None], None]
) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        hub_of(f"http://127.0.0.1:{bound.getsockname()[1]}", TOKEN)
        with pytest.raises(RunStopped) as raised:
            export(saved, tmp_path / "out", "--push", "me/mine")
    assert raised.value.status == 1
    [line] = str(raised.value).splitlines()
    assert line.startswith("--push=me/mine failed: ")
    assert line.endswith(f"hf upload me/mine {tmp_path}/out tries again")
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("token", "text"),
    [(None, "needs a token of the hub: hf auth login, or set HF_TOKEN"), ("hf_other", "401")],
)
def test_without_the_right_token_one_line_says_so(
    saved: Path,
    tmp_path: Path,
    hub_of: Callable[[str, str | None], None],
    token: str | None,
    text: str,
) -> None:
    with hub_server() as hub:
        hub_of(hub.endpoint, token)
        with pytest.raises(RunStopped, match=text) as raised:
            export(saved, tmp_path / "out", "--push", "me/mine")
    assert len(str(raised.value).splitlines()) == 1
    assert hub.repositories == {}
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "../me"])
def test_a_repository_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not of the form USER/REPO"):
        export("no-run", tmp_path / "out", f"--push={name}")


@pytest.mark.parametrize("name", ["timm", "transformers", "onnx", "torch"])
def test_a_full_disk_is_one_line(
    saved: Path, tmp_path: Path, mount_disk: MountDisk, name: str
) -> None:
    disk, photo = mount_disk("100k"), tmp_path / "1.png"
    photo.write_bytes(make_png(1))
    text = f"OUT={disk}/out cannot be written: No space left on device; make room"
    with pytest.raises(UserError, match=f"^{re.escape(text)}$"):
        export(saved, disk / "out", "--to", name, "--no-head", "--images", photo)
    assert list(disk.iterdir()) == []
