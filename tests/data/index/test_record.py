"""A run goes on under other names of its shards; what else changed is named."""

import json
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import pretrain.run
import scripts.verify_run
from data.index.open import open_manifest
from data.index.record import RECORD_NAME, changes, read_record, record
from data.settings import UserError
from data.shards import write_shard
from tests.conftest import make_sample

NAMES = ("train-0.tar", "train-1.tar", "train-2.tar")


def train(arguments: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    pretrain.run.main(arguments)


@pytest.fixture
def told(tmp_path: Path, shards: Path, tiny: list[str]) -> list[str]:
    """Copy the shards, and give the arguments of a run on them, but for `data.shards`."""
    (tmp_path / "first").mkdir()
    for name in NAMES:
        shutil.copy(shards / name, tmp_path / "first" / name)
    return [*tiny, "optim.steps=6", "run.checkpoint_every=3", f"run.dir={tmp_path}/run"]


def cut_back(run: Path) -> bytes:
    """Take a run back to its first checkpoint; return the weights that it had at the end."""
    first, last = sorted((run / "checkpoints").iterdir())
    content = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    assert first.name.endswith("3")
    return content


@pytest.mark.timeout(300)
def test_a_run_goes_on_where_its_shards_have_other_names(tmp_path: Path, told: list[str]) -> None:
    run, first = tmp_path / "run", tmp_path / "first"
    train([*told, f"data.shards={first}/*.tar"])
    assert [row.names for row in read_record(run)] == [(name,) for name in NAMES]
    whole = cut_back(run)
    # one is renamed and two are moved, so that each has another name below the common folder
    (tmp_path / "second").mkdir()
    now = ["first/0.tar", "second/x.tar", "second/y.tar"]
    for name, new in zip(NAMES, now, strict=True):
        (first / name).rename(tmp_path / new)
    moved = [*told, f"data.shards=[{first}/0.tar,{tmp_path}/second]"]
    train(moved)
    [*_, last] = sorted((run / "checkpoints").iterdir())
    assert (last / "model.safetensors").read_bytes() == whole
    assert [row.names for row in read_record(run)] == list(zip(NAMES, now, strict=True))
    lines = (run / "trace" / "rank-0.jsonl").read_text().splitlines()
    keys = [json.loads(line)["keys"][0].rpartition("/")[0] for line in lines]
    assert set(keys[:3]) <= set(NAMES)
    assert set(keys[3:]) <= set(now)
    scripts.verify_run.main([str(run)])  # it knows both names

    cut_back(run)
    (tmp_path / "second/x.tar").rename(tmp_path / "second/z.tar")  # after y now
    with pytest.raises(UserError) as caught:
        train(moved)
    text = str(caught.value)
    assert "the shards are the same in another order, second/y.tar where second/x.tar was" in text
    assert "which was first/0.tar, second/x.tar, second/y.tar" in text
    train([*told, f"data.shards=[{first}/0.tar,{tmp_path}/second/z.tar,{tmp_path}/second/y.tar]"])


@pytest.mark.timeout(300)
def test_a_checkpoint_of_an_older_version_is_accepted(tmp_path: Path, told: list[str]) -> None:
    """It holds the fingerprint with the names, and its run has no record."""
    run, spec = tmp_path / "run", f"data.shards={tmp_path}/first/*.tar"
    train([*told, spec])
    whole = cut_back(run)
    (run / RECORD_NAME).unlink()
    [folder] = (run / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    manifest = open_manifest(f"{tmp_path}/first/*.tar", "k")
    assert state["content of the shards (sha256)"] == manifest.content
    state["content of the shards (sha256)"] = manifest.fingerprint
    (folder / "state.json").write_text(json.dumps(state))
    seal(folder)
    train([*told, spec])
    [*_, last] = sorted((run / "checkpoints").iterdir())
    assert (last / "model.safetensors").read_bytes() == whole
    assert len(read_record(run)) == 3


def seal(folder: Path) -> None:
    """Hash a checkpoint's files again."""
    from pretrain.records.checkpoint import MANIFEST, hash_file

    names = json.loads((folder / MANIFEST).read_text())
    hashes = {name: hash_file(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(hashes))


def test_what_changed_is_named(tmp_path: Path) -> None:
    for number in range(4):
        write_shard(tmp_path / f"{number}.tar", [make_sample(number)])
    paths = [f"{tmp_path}/{number}.tar" for number in range(4)]
    record(tmp_path, open_manifest(paths[:3], "k"))
    before = (tmp_path / RECORD_NAME).read_bytes()
    record(tmp_path, open_manifest(paths[:3], "k"))
    assert (tmp_path / RECORD_NAME).read_bytes() == before
    for spec, text in (
        (paths, "new: 3.tar"),
        (paths[:2], "gone: 2.tar"),
        ([paths[0], paths[3], paths[2]], "gone: 1.tar; new: 3.tar"),
        (paths[2::-1], "the shards are the same in another order, 2.tar where 0.tar was, 0.tar wh"),
    ):
        assert changes(tmp_path, open_manifest(spec, "k")).startswith(text)
    write_shard(tmp_path / "1.tar", [make_sample(5)])
    assert changes(tmp_path, open_manifest(paths[:3], "k")) == "changed: 1.tar"
    assert changes(tmp_path / "none", open_manifest(paths, "k")) == ""
    (tmp_path / RECORD_NAME).write_bytes(before[:-9])
    assert changes(tmp_path, open_manifest(paths, "k")) == ""
