"""Grey and 5-channel images from pretraining to a classifier's answers."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

import finetune.fewshot
import finetune.run
import pretrain.run
import scripts.predict
from data.settings import UserError
from data.shards import ImageFile, write_shard
from finetune.backbone import load_as_saved
from pretrain.configuration.layers import read_yaml
from pretrain.encoder import load_encoder
from pretrain.encoder.facts import image_data, num_channels


def start(argument: str, told: list[str], *more: str) -> list[str]:
    return [each for each in told if not each.startswith(argument)] + list(more)


def test_a_grey_encoder_is_fine_tuned_measured_and_asked(
    tmp_path: Path,
    tiny: list[str],
    tiny_finetune: list[str],
    capsys: pytest.CaptureFixture[str],
    shards: Path,
) -> None:
    pretrain.run.main([*tiny, "data.channels=1", "optim.steps=4", f"run.dir={tmp_path}/grey"])
    assert num_channels(load_encoder(tmp_path / "grey")) == 1
    told = start("encoder.", tiny_finetune, "optim.steps=4", f"encoder.init={tmp_path}/grey")
    with pytest.raises(UserError, match="images of 1 channels, and data"):
        finetune.run.main([*told, "data.channels=3", f"run.dir={tmp_path}/other"])

    tuned = tmp_path / "tuned"
    finetune.run.main(
        [*told, "data.channels=1", "data.augment=rand-m5", "mix.mixup=0.8", f"run.dir={tuned}"]
    )
    assert read_yaml(str(tuned / "config.yaml"))["data"]["channels"] == 1
    assert image_data(load_as_saved(tuned))["input_size"] == (1, 16, 16)
    assert json.loads((tuned / "result.json").read_text())["flops_per_image"] > 0
    with pytest.raises(UserError, match="another configuration"):
        finetune.run.main([*told, "data.channels=1", "data.mean=[0.4]", f"run.dir={tuned}"])

    image = tmp_path / "image.png"
    image.write_bytes(_first_image(shards))
    capsys.readouterr()
    scripts.predict.main([str(tuned), str(image), "--json"])
    assert json.loads(capsys.readouterr().out)[0]["classes"]

    data = start("encoder.", [each for each in tiny_finetune if each.startswith(("data.", "enc"))])
    finetune.fewshot.main(
        [
            *data,
            f"encoder.init={tmp_path}/grey",
            "data.channels=1",
            "fewshot.shots=[2]",
            "fewshot.num_seeds=1",
            f"fewshot.dir={tmp_path}/fewshot",
        ]
    )
    assert 0 <= json.loads((tmp_path / "fewshot/result.json").read_text())["accuracy/2shot"] <= 1


def _first_image(shards: Path) -> bytes:
    import tarfile

    with tarfile.open(shards / "val-0.tar") as tar:
        member = next(member for member in tar if member.name.endswith(".png"))
        content = tar.extractfile(member)
        assert content is not None
        return content.read()


def array(number: int) -> bytes:
    """Make an image of 5 channels, brighter by class."""
    values = np.random.default_rng(number).integers(0, 120, (16, 16, 5)) + 60 * (number % 3)
    content = io.BytesIO()
    np.save(content, values.astype(np.uint8))
    return content.getvalue()


def test_five_channels_train_a_baseline_and_are_classified(
    tmp_path: Path, tiny_finetune: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, numbers in (("train-0", range(24)), ("val-0", range(30, 36))):
        samples = (ImageFile(f"{n:03d}", "npy", array(n), n % 3) for n in numbers)
        write_shard(tmp_path / f"{name}.tar", samples)
    told = start("data.train", start("data.val", start("encoder.", tiny_finetune)))
    told = [
        *start("data.image_size", told),
        f"data.train={tmp_path}/train-0.tar",
        f"data.val={tmp_path}/val-0.tar",
        "data.image_size=32",
        "encoder.name=test_resnet",
        "data.channels=5",
        "optim.steps=4",
        f"run.dir={tmp_path}/tuned",
    ]
    finetune.run.main(told)
    (tmp_path / "image.npy").write_bytes(array(1))
    capsys.readouterr()
    scripts.predict.main([str(tmp_path / "tuned"), str(tmp_path / "image.npy"), "--json"])
    assert len(json.loads(capsys.readouterr().out)[0]["classes"]) == 3
    with pytest.raises(UserError, match=r"data.augment=rand-m5 changes RGB or grey images"):
        finetune.run.main([*told, "data.augment=rand-m5", f"run.dir={tmp_path}/other"])
