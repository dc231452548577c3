"""Training and validation have nothing in common, or it is said: through the real entry points."""

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import finetune.fewshot
import finetune.probe
import finetune.run
import pretrain.run
import scripts.make_shards
from data.index.open import open_manifest
from data.reading.overlap import check_apart
from data.settings import UserError
from data.shards import ImageFile, write_shard
from tests.conftest import make_png, make_sample

KEYS = ("data.shards", "data.val_shards")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make shards of a folder of images, with a part for validation."""
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("made") / "mine"
    for number in range(40):
        name = f"{'abc'[number % 3]}/{number:02d}.png"
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(make_png(number))
    cut = ["--val-ratio", "0.25", "--shard-mb", "0.02"]
    scripts.make_shards.main([str(photos), str(out), *cut])
    assert (out / "train-000001.tar").exists()
    assert (out / "val-000000.tar").exists()
    return out


def traced(run: Path) -> set[str]:
    """Name the shards that a run has trained on."""
    lines = [line for path in (run / "trace").iterdir() for line in path.read_text().splitlines()]
    return {key.split("/")[0] for line in lines for key in json.loads(line)["keys"]}


def test_a_folder_with_both_splits_trains_on_its_own(
    tmp_path: Path, made: Path, tiny: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train = sorted(path.name for path in made.glob("train-*.tar"))
    val = sorted(path.name for path in made.glob("val-*.tar"))
    arguments = [*tiny, f"data.shards={made}", f"data.val_shards={made}/val-000000.tar"]
    pretrain.run.main([*arguments, "optim.steps=8", f"run.dir={tmp_path}/run"])
    assert traced(tmp_path / "run") == set(train)
    [said] = [line for line in caplog.messages if line.startswith("data.shards=")]
    assert f"its {len(train)} training shards are read; left out: " in said
    assert f"validation shard{'s' * (len(val) > 1)} (val-000000.tar" in said
    assert not [line for line in caplog.messages if "byte for byte" in line]


def refusal(main: Callable[[list[str]], None], arguments: list[str]) -> str:
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_shard_in_both_is_refused_by_name(
    tmp_path: Path, made: Path, tiny: list[str], tiny_finetune: list[str]
) -> None:
    copy = tmp_path / "other-name.tar"  # the content counts
    copy.write_bytes((made / "train-000001.tar").read_bytes())
    out = f"run.dir={tmp_path}/run"
    text = refusal(
        pretrain.run.main,
        [*tiny, out, f"data.shards={made}/*.tar", f"data.val_shards={made}/val-000000.tar"],
    )
    assert text.startswith("val-000000.tar is in data.shards and in data.val_shards, by content")
    assert "leave it out of one of the two, as with data.shards='FOLDER/train-*.tar'" in text
    text = refusal(
        pretrain.run.main, [*tiny, out, f"data.shards={made}", f"data.val_shards={copy}"]
    )
    assert text.startswith("other-name.tar is in data.shards and in data.val_shards")
    shards = [f"data.shards={made}/train-*.tar", "data.read=sequential"]
    for val in (made / "train-000000.tar", copy):
        text = refusal(pretrain.run.main, [*tiny, out, *shards, f"data.val_shards={val}"])
        assert text.startswith(f"{val.name} would be trained on and validated on; leave it out")
    both = [f"data.train={made}", f"data.val={copy}"]
    text = refusal(finetune.run.main, [*tiny_finetune, out, *both])
    assert text.startswith("other-name.tar is in data.train and in data.val")
    for main in (finetune.fewshot.main, finetune.probe.main):
        told = [key for key in tiny_finetune if not key.startswith(("run.", "optim."))]
        text = refusal(main, [*told, *both])
        assert text.startswith("other-name.tar is in data.train and in data.val")
    probe = [f"probe.train={made}/train-*.tar", f"probe.val={copy}"]
    text = refusal(pretrain.run.main, [*tiny, out, *probe])
    assert text.startswith("other-name.tar is in probe.train and in probe.val")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- images


def warned(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    train, val = (open_manifest(f"{folder}/{name}-*.tar", name) for name in ("train", "val"))
    check_apart(train, val, KEYS)
    return [line for line in caplog.messages if "byte for byte" in line]


def test_images_that_are_in_both_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        images = map(make_sample, range(10 * number, 10 * number + 10))
        write_shard(tmp_path / f"train-{number}.tar", images)
    write_shard(tmp_path / "val-0.tar", map(make_sample, range(100, 110)))
    assert warned(tmp_path, caplog) == []
    # other keys and labels, equal bytes; equal labels alone are nothing
    same = [ImageFile(f"x{number}", "png", make_png(number), 2) for number in (3, 17)]
    write_shard(tmp_path / "val-1.tar", [make_sample(111), *same])
    assert warned(tmp_path, caplog) == [
        "2 images of data.val_shards are in data.shards too, byte for byte (val-1.tar/x3 is "
        "train-0.tar/003): the validation's figures are better than they would be on other images"
    ]


def test_equal_checksums_are_not_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two arrays of one size whose CRC-32 agree, as among a million arrays some do."""
    # the CRC is linear: adding the polynomial's multiple of 33 bits leaves it as it was
    first, polynomial = bytes(40), (0x104C11DB7).to_bytes(5, "big")
    swap = bytes(int(f"{byte:08b}"[::-1], 2) for byte in polynomial)
    second = bytes(10) + swap + bytes(25)
    assert zlib.crc32(first) == zlib.crc32(second)
    write_shard(tmp_path / "train-0.tar", [ImageFile("a", "npy", first)])
    write_shard(tmp_path / "val-0.tar", [ImageFile("b", "npy", second)])
    assert warned(tmp_path, caplog) == []


def test_empty_shards_and_fractions_have_nothing_in_common(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", map(make_sample, range(10)))
    write_shard(tmp_path / "train-1.tar", [])
    write_shard(tmp_path / "val-0.tar", map(make_sample, range(100, 110)))
    write_shard(tmp_path / "val-1.tar", [])
    train = open_manifest(f"{tmp_path}/train-*.tar", "k", fraction=0.3)
    check_apart(train, open_manifest(f"{tmp_path}/val-*.tar", "k"), KEYS)
    with pytest.raises(UserError, match=r"train-0.tar is in data.shards and in data.val_shards"):
        check_apart(train, open_manifest(f"{tmp_path}/train-0.tar", "k"), KEYS)
