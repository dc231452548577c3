"""Runs on a folder of images: what a run on its shards gives, through kills, ranks and changes."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

import finetune.run
import pretrain.run
import scripts.make_shards
import scripts.verify_run
from data.settings import UserError
from pretrain.records.logs import read_records
from tests.conftest import BAD, make_sample
from tests.faults.test_ranks import figures, global_batches, kill, stop_after, weights_hash
from tests.launching import Ranks, run_ranks

STEPS, PER_EPOCH = 12, 3  # 36 images in batches of 12

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 36 images, of which one is none, to a folder per class; and their shard beside it."""
    top = tmp_path_factory.mktemp("images")
    for number in range(36):
        sample = make_sample(number)
        path = top / "photos" / "abc"[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.data)
    scripts.make_shards.main([str(top / "photos"), str(top / "shards")])
    return top


@pytest.fixture
def photos(tmp_path: Path, images: Path) -> Path:
    """Copy the folder, to be changed."""
    return shutil.copytree(images / "photos", tmp_path / "photos", copy_function=shutil.copy2)


@pytest.fixture(scope="module")
def arguments(tiny: list[str]) -> list[str]:
    more = ["optim.batch_size=12", f"optim.steps={STEPS}", "run.checkpoint_every=2"]
    return [*tiny, *more, "data.max_bad_ratio=1"]


def keys(run: Path) -> dict[int, list[str]]:
    """Return the keys of each step without their shard and the image's ending."""
    names = global_batches(run)
    return {
        step: [re.sub(r"^[^/]*/|\.png$", "", name) for name in batch]
        for step, batch in names.items()
    }


def test_a_folder_trains_as_its_shards_to_the_bit(
    tmp_path: Path, images: Path, arguments: list[str]
) -> None:
    for name in ("shards", "photos"):
        pretrain.run.main(
            [*arguments, f"data.shards={images}/{name}", f"run.dir={tmp_path}/{name}"]
        )
    shards, photos = tmp_path / "shards", tmp_path / "photos"
    assert keys(photos) == keys(shards)
    assert figures(photos) == figures(shards)
    assert weights_hash(photos, STEPS) == weights_hash(shards, STEPS)
    ledger = read_records(photos / "bad_samples.jsonl")
    assert [f"{line['shard']}/{line['key']}" for line in ledger] == [
        f"photos/{'abc'[BAD % 3]}/{BAD:03d}.png"
    ] * (STEPS // PER_EPOCH)
    scripts.verify_run.main([str(photos)])


def test_killed_changed_and_gone_on_with_two_ranks(
    tmp_path: Path, images: Path, photos: Path, arguments: list[str]
) -> None:
    """Files come and go while a run lies killed: it goes on, and names what it lost.

    What is set aside for validation is never trained on, before and after.
    """
    arguments = [*arguments, "data.val_ratio=0.2", "data.val_shards=null", "run.eval_every=6"]
    plain = [*arguments, f"data.shards={images}/photos", f"run.dir={tmp_path}/plain"]
    pretrain.run.main(plain)
    run = tmp_path / "run"
    more = [*arguments, f"data.shards={photos}", f"run.dir={run}", "data.workers=2"]
    with Ranks(more, 1, tmp_path / "logs") as ranks:
        stop_after(ranks, run, 5, kill)
    (photos / "a" / "003.png").unlink()
    os.utime(photos / "b" / "007.png")
    shutil.copy(photos / "c" / "005.png", photos / "c" / "new.png")
    shutil.rmtree(tmp_path / "cache")  # the run has what it needs
    output = run_ranks([*more, "data.workers=0"], 2, tmp_path / "logs")
    assert (
        f"{photos}: since the run was begun, 1 file is changed (b/007.png); 1 file is new "
        "(c/new.png); 1 file is gone (a/003.png); the run keeps to the images with which it began"
    ) in output
    scripts.verify_run.main([str(run)])
    reasons = {line["key"]: line["reason"] for line in read_records(run / "bad_samples.jsonl")}
    assert reasons["a/003.png"] == "the file has vanished since it was listed"
    assert reasons["b/007.png"].startswith("the file has changed since it was listed: of ")
    assert len(reasons) == 3
    expected, found = keys(tmp_path / "plain"), keys(run)
    resumed = next(step for step in found if found[step] != expected[step])
    assert resumed > 2
    for step, batch in found.items():
        lost = {"a/003", "b/007"} if step >= resumed else set[str]()
        assert batch == [key for key in expected[step] if key not in lost]
    trained = [key for batch in expected.values() for key in batch]
    every = {f"{'abc'[number % 3]}/{number:03d}" for number in range(36)} - {"b/022"}  # no image
    assert every - set(trained) == {"b/004", "c/005", "b/019", "a/033", "c/035"}
    assert set(Counter(trained).values()) == {STEPS // PER_EPOCH}
    assert [r["step"] for r in read_records(run / "metrics.jsonl") if "val/loss" in r] == [6, 12]
    with pytest.raises(UserError, match=r"data.val_ratio was 0.2, now 0.3; give the same keys"):
        pretrain.run.main([*more, "data.val_ratio=0.3"])


def test_a_run_is_not_taken_to_other_images(
    tmp_path: Path, images: Path, photos: Path, arguments: list[str]
) -> None:
    run = [*arguments, f"run.dir={tmp_path}/run"]
    pretrain.run.main([*run, f"data.shards={photos}"])
    shutil.rmtree(tmp_path / "run/checkpoints" / f"step-{STEPS:08d}")
    copy = shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copy)  # other times
    with pytest.raises(UserError, match=r"copy: 36 files are changed \(a/000.png, a/003.png, a/"):
        pretrain.run.main([*run, f"data.shards={copy}"])
    moved = photos.rename(tmp_path / "moved")
    pretrain.run.main([*run, f"data.shards={moved}"])
    scripts.verify_run.main([str(tmp_path / "run"), "--shards", str(moved)])
    shutil.rmtree(moved)
    moved.mkdir()
    (tmp_path / "run/checkpoints" / f"step-{STEPS:08d}").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"moved: the folder holds no image and no \*.tar file"):
        pretrain.run.main([*run, f"data.shards={moved}"])


def test_validation_on_the_same_files_is_refused(
    tmp_path: Path, photos: Path, arguments: list[str], tiny_finetune: list[str]
) -> None:
    out = [f"run.dir={tmp_path}/run"]
    both = [f"data.shards={photos}", f"data.val_shards={photos}/a"]
    with pytest.raises(UserError, match=r"12 files \(.*/photos/a/000.png, .*\) are in data.shards"):
        pretrain.run.main([*arguments, *both, *out])
    with pytest.raises(UserError, match=r"tar files, and data.shards names images"):
        pretrain.run.main([*arguments, f"data.shards={photos}", "data.read=sequential", *out])
    labelled = [f"data.train={photos}", f"data.val={photos}"]
    with pytest.raises(UserError, match=r"36 files \(.*\) are in data.train and in data.val"):
        finetune.run.main([*tiny_finetune, *labelled, *out])


def test_an_unmounted_folder_stops_the_run(
    tmp_path: Path, photos: Path, arguments: list[str]
) -> None:
    run = [*arguments, f"data.shards={photos}", f"run.dir={tmp_path}/run", "data.workers=1"]
    with Ranks([*run, "optim.steps=100000"], 1, tmp_path / "logs") as ranks:

        def unmount(ranks: Ranks) -> None:
            photos.rename(tmp_path / "elsewhere")
            assert ranks.wait() == [1], ranks.output[-2000:]
            assert "stopped: the shards cannot be read: [Errno 2]" in ranks.output

        stop_after(ranks, tmp_path / "run", 3, unmount)


def num_validated(run: Path) -> int:
    result = json.loads((run / "result.json").read_text())
    return sum(map(sum, result["confusion"]))


def test_fine_tuning_and_probes_take_folders(
    tmp_path: Path, images: Path, photos: Path, arguments: list[str], tiny_finetune: list[str]
) -> None:
    for name in "abc":  # other images: flipped bytes would not decode, so leave some out of each
        for path in sorted((photos / name).iterdir())[3:]:
            path.unlink()
        for path in sorted((photos / name).iterdir()):
            path.write_bytes(make_sample(int(path.stem) + 200).data)
    folders = [f"data.train={images}/photos", f"data.val={photos}"]
    finetune.run.main(
        [*tiny_finetune, *folders, "data.max_bad_ratio=1", f"run.dir={tmp_path}/tuned"]
    )
    assert (tmp_path / "tuned/result.json").exists()
    aside = [f"data.train={images}/photos", "data.val_ratio=0.2", f"run.dir={tmp_path}/aside"]
    aside.append("data.val=null")
    with pytest.raises(UserError, match=r"and data.val_ratio=0.2 both choose the validation"):
        finetune.run.main([*tiny_finetune, *aside, f"data.val={photos}"])
    finetune.run.main([*tiny_finetune, *aside, "data.max_bad_ratio=1"])
    assert num_validated(tmp_path / "aside") == 5
    # a finished run is measured on other images
    finetune.run.main([*tiny_finetune, *aside, "data.max_bad_ratio=1", f"data.val={photos}"])
    assert num_validated(tmp_path / "aside") == 9
    probe = [f"probe.train={images}/photos", f"probe.val={photos}", "probe.shots=[1]"]
    pretrain.run.main([*arguments, *probe, f"run.dir={tmp_path}/run", "optim.steps=4"])
    assert any("probe/knn" in record for record in read_records(tmp_path / "run/metrics.jsonl"))
