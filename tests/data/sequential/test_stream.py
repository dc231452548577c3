"""Reading only forwards: each sample once a pass, and nothing lost in silence."""

import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from webdataset.tariterators import tarfile_to_samples

import pretrain.run
from data.batch import Batch, LedgerEntry
from data.sequential.sources import TarSource, list_sources
from data.sequential.stream import Reading, SequentialStream, read_source
from data.settings import RunStopped, UserError
from data.shards import ImageFile, write_shard
from data.storage.locations import Storage
from data.stream import Share
from pretrain.records.logs import read_records
from tests.conftest import BAD, make_png
from tests.servers import Fault, flaky_http

ROOT = Path(__file__).resolve().parents[3]
SIZE = (16, 16)

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def make_stream(
    spec: object,
    batch_size: int = 4,
    share: Share | None = None,
    workers: int = 0,
    seed: int = 0,
    storage: Storage | None = None,
) -> SequentialStream:
    sources = tuple(list_sources(spec, "data.shards", allow_pipe=True))
    reading = Reading(sources, storage or Storage(), SIZE, seed, (0.08, 1.0))
    share = share or Share(0, 1, batch_size)
    return SequentialStream(reading, batch_size, share, workers)


def take(stream: SequentialStream, num_steps: int, first: int = 0) -> list[Batch]:
    """Take all micro-batches of the first steps."""
    return list(chain(*islice(stream.steps(first, 1000), num_steps)))


def names(batches: Iterable[Batch]) -> list[str]:
    return [place.name for batch in batches for place in batch.places]


def bad(batches: Iterable[Batch]) -> list[LedgerEntry]:
    return [entry for batch in batches for entry in batch.bad]


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 8 shards of 4 images each; keys are unique in their shard only."""
    folder = tmp_path_factory.mktemp("equal")
    for shard in range(8):
        images = (ImageFile(f"{i}", "png", make_png(10 * shard + i), 0) for i in range(4))
        write_shard(folder / f"{shard}.tar", images)
    return folder


ALL = sorted(f"{shard}.tar/{key}" for shard in range(8) for key in range(4))


def write_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


# ---------------------------------------------------------------- passes


@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_comes_once_a_pass_over_ranks_and_workers(equal: Path, workers: int) -> None:
    """2 ranks, 2 workers: each of the 4 readers has 2 of the 8 shards in a pass."""
    streams = [make_stream(equal, 8, Share(rank, 2, 2), workers) for rank in range(2)]
    for first, last in ((0, 4), (4, 8)):
        found = [take(stream, 8)[2 * first : 2 * last] for stream in streams]
        assert sorted(names(chain(*found))) == ALL
    first, second = (names(take(streams[0], 8)[8 * part : 8 * (part + 1)]) for part in range(2))
    assert first != second  # another shuffle, and so other shards


def test_a_pass_depends_on_the_seed_and_a_resume_starts_another(equal: Path) -> None:
    one = names(take(make_stream(equal), 8))
    assert names(take(make_stream(equal), 8)) == one
    assert names(take(make_stream(equal, seed=1), 8)) != one
    resumed = names(take(make_stream(equal), 8, first=8))
    assert resumed != one
    assert sorted(resumed) == sorted(one) == ALL


def test_a_samples_randomness_depends_on_neither_rank_nor_worker(equal: Path) -> None:
    def crops(batches: Iterable[Batch]) -> dict[str, tuple[int, bytes]]:
        return {
            place.name: (int(key), image.numpy().tobytes())
            for batch in batches
            for place, key, image in zip(
                batch.places, batch.tensors["random_key"], batch.tensors["image"], strict=True
            )
        }

    alone = crops(take(make_stream(equal), 8))
    assert len({key for key, _ in alone.values()}) == 32
    shared: dict[str, tuple[int, bytes]] = {}
    for rank in range(2):
        shared |= crops(take(make_stream(equal, 8, Share(rank, 2, 2), 2), 4))
    assert shared == alone
    both = take(make_stream(equal), 16)
    assert crops(both[8:]).keys() == alone.keys()
    assert all(crops(both[8:])[name] != value for name, value in alone.items())  # another pass


def test_the_interface_of_the_loop(equal: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stream = make_stream(equal, 8, Share(1, 2, 2))
    [warning] = caplog.messages
    assert "data.read=sequential: samples may repeat or be missed when this run stops" in warning
    steps = list(stream.steps(3, 6))
    assert [len(batches) for batches in steps] == [2, 2, 2]
    for step, batches in enumerate(steps, start=3):
        places = [place for batch in batches for place in batch.places]
        assert [place.position for place in places] == list(range(8 * step + 4, 8 * step + 8))
        assert {place.epoch for place in places} == {stream.epoch(step)} == {0}
    batch = steps[0][0]
    assert batch.tensors["image"].shape == (2, 3, *SIZE)
    assert batch.tensors["image"].dtype == torch.uint8
    assert batch.tensors["weight"].tolist() == [1, 1]
    assert batch.tensors["random_key"].dtype == torch.int64
    assert batch.tensors["label"].tolist() == [-1, -1]
    assert stream.constants(3) == {
        "read": "sequential",
        "batch_size": 8,
        "seed": 0,
        "consumed": 24,
    }
    assert 10**9 / stream.steps_per_epoch < 1e-9
    assert stream.damage(3) == []


def test_webdataset_groups_the_same_samples(shards: Path) -> None:
    source = TarSource("train-0.tar", str(shards / "train-0.tar"))
    ours: list[Any] = list(read_source(source, Storage()))
    theirs: Any = tarfile_to_samples()([{"url": source.location}])
    expected = [{k: v for k, v in sample.items() if k != "__url__"} for sample in theirs]
    found = [{k: v for k, v in s.members.items() if k != "__url__"} for s in ours]
    assert len(found) == 20
    assert found == expected


# ---------------------------------------------------------------- refused


def test_fewer_shards_than_readers_are_refused(equal: Path) -> None:
    with pytest.raises(UserError) as caught:
        make_stream(equal, 8, Share(0, 4, 2), workers=3)
    assert str(caught.value) == (
        "data.shards names 8 shards for 12 readers (4 ranks, data.workers=3), and each needs one "
        "of its own under data.read=sequential; set data.workers=2"
    )
    with pytest.raises(UserError, match=r"names 1 shard for 2 readers .* cut them into more"):
        make_stream(str(equal / "0.tar"), 4, Share(0, 2, 2))


@pytest.mark.parametrize(("share", "workers"), [(Share(0, 2, 2), 0), (Share(0, 1, 4), 1)])
def test_standard_input_has_one_reader(share: Share, workers: int) -> None:
    with pytest.raises(UserError, match=r"start one process with data\.workers=0"):
        make_stream("-", 4, share, workers)


# ---------------------------------------------------------------- what cannot be used


def test_an_image_that_is_none_keeps_its_slot_and_is_named(shards: Path) -> None:
    [batch, *_] = take(make_stream(str(shards / "train-1.tar"), 7), 1)
    slot = BAD - 20
    assert batch.tensors["weight"].tolist() == [float(i != slot) for i in range(7)]
    assert not batch.tensors["image"][slot].any()
    assert batch.bad == [
        LedgerEntry(0, slot, "train-1.tar", f"{BAD:03d}", "no image format that Pillow knows")
    ]
    assert len(batch.places) == 6


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb, image = pickle.dumps(Bomb()), make_png(0)
    members = [(f"a.{extension}", bomb) for extension in ("pkl", "pyd", "pth", "pickle")]
    path = write_tar(tmp_path / "a.tar", *members, ("a.png", image), ("b.pkl", bomb))
    [batch] = take(make_stream(str(path), 2), 1)
    assert names([batch]) == ["a.tar/a"]
    assert [entry[2:] for entry in batch.bad] == [
        ("a.tar", "b", "no image among its members (.pkl); a key ends at the first dot of a name")
    ]
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def header_of(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Write two shards of 4 images each, with the same keys."""
    for shard in range(2):
        images = (ImageFile(f"{i}", "png", make_png(10 * shard + i), 0) for i in range(4))
        write_shard(tmp_path / f"{shard}.tar", images)
    return [str(tmp_path / f"{shard}.tar") for shard in range(2)]


def damaged_pass(two: list[str], num_samples: int) -> tuple[list[str], list[LedgerEntry]]:
    """Read one pass and the first sample after it; return its names and what the ledger says."""
    batches = take(make_stream(two, 1), num_samples + 1)
    return sorted(names(batches[:num_samples])), bad(batches)


@pytest.mark.parametrize(
    ("member", "inside", "left"),
    [("2.png", 10, 2), ("2.png", 512 + 100, 2), ("2.png", 0, 2), ("2.cls", 0, 1)],
)
def test_a_cut_shard_is_named_and_the_next_one_is_whole(
    two: list[str], member: str, inside: int, left: int
) -> None:
    """Cut inside a header, inside an image, between two members, between two samples."""
    offset = header_of(Path(two[0]), member) + inside
    cut(Path(two[0]), offset)
    found, ledger = damaged_pass(two, 4 + left)
    assert found == [*(f"0.tar/{i}" for i in range(left)), *(f"1.tar/{i}" for i in range(4))]
    read = "1 sample was" if left == 1 else f"{left} samples were"
    reason = f"cut at offset {offset}; its last sample, {left}, was left out; {read} read"
    assert ledger[0] == LedgerEntry(0, None, "0.tar", None, reason)


def test_samples_of_one_key_are_not_merged_over_a_damaged_end(two: list[str]) -> None:
    """The sample 0 of the first shard has its image alone, that of the second its label first."""
    image = make_png(0)
    cut(
        write_tar(Path(two[0]), ("0.png", image), ("0.cls", b"0")),
        512 + 512 * -(-len(image) // 512),
    )
    write_tar(Path(two[1]), ("0.cls", b"1"), ("1.png", image), ("1.cls", b"1"))
    batches = take(make_stream(two, 1), 4)
    assert set(names(batches)) == {"1.tar/1"}
    assert {entry.key for entry in bad(batches)} == {None, "0"}
    assert any("no image among its members (" in entry.reason for entry in bad(batches))


def test_hidden_files_are_passed_over_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [(f"img/{n}.{e}", make_png(n)) for n in range(3) for e in ("png", "txt")]
    hidden = [(name.replace("/", "/._"), b"attributes") for name, _ in files]
    mixed = [member for pair in zip(hidden, files, strict=True) for member in pair]
    path = str(write_tar(tmp_path / "mac.tar", ("img/.DS_Store", b"x"), *mixed))
    batches = take(make_stream(path, 3), 2)
    assert sorted(names(batches)) == sorted(2 * [f"mac.tar/img/{n}" for n in range(3)])
    assert bad(batches) == []
    said = "shard mac.tar: passed over 7 hidden files (first img/.DS_Store)"
    assert caplog.messages.count(said) == 1


def test_a_damaged_header_is_named(two: list[str]) -> None:
    offset = header_of(Path(two[0]), "1.png")
    content = bytearray(Path(two[0]).read_bytes())
    content[offset + 3] ^= 1
    Path(two[0]).write_bytes(content)
    found, ledger = damaged_pass(two, 5)
    assert found == ["0.tar/0", *(f"1.tar/{i}" for i in range(4))]
    assert ledger[0].reason == (
        f"unreadable header at offset {offset}; its last sample, 1, was left out; 1 sample was read"
    )


def test_a_name_that_occurs_twice_is_named(two: list[str]) -> None:
    image = make_png(0)
    write_tar(Path(two[0]), ("0.png", image), ("1.png", image), ("1.PNG", image), ("2.png", image))
    found, ledger = damaged_pass(two, 5)
    assert found == ["0.tar/0", *(f"1.tar/{i}" for i in range(4))]
    assert "1.PNG: duplicate file name in tar file" in ledger[0].reason
    assert "the rest of the shard was left out; its last sample, 1," in ledger[0].reason


def test_something_else_than_a_tar_is_named(two: list[str]) -> None:
    Path(two[0]).write_bytes(b"<html>no such file</html>" * 100)
    found, ledger = damaged_pass(two, 4)
    assert found == [f"1.tar/{i}" for i in range(4)]
    assert ledger[0][2:] == (
        "0.tar",
        None,
        "not a tar file but a web page, perhaps a server's error message; 0 samples were read",
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_without_a_sample_stops_the_run(two: list[str], workers: int) -> None:
    for path in two:
        Path(path).write_bytes(b"")
    with pytest.raises(RunStopped, match=r"none of the shards gives a sample \(0 bytes; 0 samples"):
        take(make_stream(two, workers=workers), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanished_stops_the_run(two: list[str], workers: int) -> None:
    stream = make_stream(two, workers=workers)
    for path in two:
        Path(path).unlink()
    with pytest.raises(RunStopped, match=r"cannot be read: .*No such file.*; the same command"):
        take(stream, 1)


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("workers", [0, 2])
def test_commands_give_what_files_give(equal: Path, workers: int) -> None:
    spec = f"pipe:cat {equal}/{{0..7}}.tar"
    found = take(make_stream(spec, workers=workers), 16)
    counts = Counter(names(found))
    assert set(counts) == {f"pipe:cat {equal}/{name}" for name in ALL}
    if not workers:
        assert set(counts.values()) == {2}
    assert bad(found) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_command_stops_the_run_with_its_status(equal: Path, workers: int) -> None:
    spec = f"pipe:cat {equal}/{{0..7}}.tar && exit 22"
    with pytest.raises(RunStopped) as caught:
        take(make_stream(spec, workers=workers), 10)
    message = str(caught.value)
    assert "&& exit 22 ended with status 22 after 20480 bytes; run it by hand" in message
    assert "\n" not in message


def test_a_command_may_unpack(two: list[str]) -> None:
    subprocess.run(["gzip", *two], check=True)
    stream = make_stream([f"pipe:gunzip -c {path}.gz" for path in two])
    assert len(set(names(take(stream, 2)))) == 8
    with pytest.raises(RunStopped, match=r"0.tar.gz is compressed|1.tar.gz is compressed"):
        take(make_stream([f"pipe:cat {path}.gz" for path in two]), 1)


# ---------------------------------------------------------------- servers


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_gives_what_files_give(equal: Path, workers: int) -> None:
    with flaky_http(equal) as server:
        server.faults.extend([Fault.SHORT, Fault.UNAVAILABLE, Fault.RESET_INSIDE])
        stream = make_stream(f"{server.url}/{{0..7}}.tar", workers=workers)
        found = take(stream, 8)
        assert set(names(found)) <= set(ALL)
        assert len(names(found)) == 32
        assert workers or sorted(names(found)) == ALL
        assert sum(seen.fault is not None for seen in server.seen) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_is_away_stops_the_run(equal: Path, workers: int) -> None:
    with flaky_http(equal) as server:
        server.pick = lambda: Fault.UNAVAILABLE
        storage = Storage(timeout_seconds=0.2, retry_seconds=0.1)
        stream = make_stream(f"{server.url}/{{0..7}}.tar", workers=workers, storage=storage)
        with pytest.raises(RunStopped) as caught:
            take(stream, 1)
    assert "503" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_redirect_to_a_file_is_not_followed(equal: Path) -> None:
    with flaky_http(equal) as server:
        server.faults.append(Fault.TO_FILE)
        stream = make_stream(f"{server.url}/0.tar", storage=Storage(0.2, 0.1))
        with pytest.raises((RunStopped, UserError), match=r"redirect|file:"):
            take(stream, 1)


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def forwards(tmp_path: Path, tiny: list[str]) -> list[str]:
    """Give the arguments of a run in batches of 4, without the shards."""
    left_out = ("data.shards=", "optim.batch_size=", "run.checkpoint_every=")
    return [
        *(argument for argument in tiny if not argument.startswith(left_out)),
        "data.read=sequential",
        "optim.batch_size=4",
        "run.checkpoint_every=2",
        f"run.dir={tmp_path}/run",
    ]


def test_a_run_reads_standard_input_to_its_end(
    tmp_path: Path, shards: Path, forwards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*forwards, "data.shards=-"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "pretrain/run.py"), *arguments],
        input=(shards / "train-0.tar").read_bytes(),
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 1
    last = ended.stderr.decode().splitlines()[-1]
    assert last.startswith("stopped: standard input ended after 20 samples, before the last of opt")
    trace = read_records(tmp_path / "run/trace/rank-0.jsonl")
    assert [record["keys"] for record in trace] == [
        [f"stdin/{i:03d}" for i in range(start, start + 4)] for start in range(0, 20, 4)
    ]

    # the next command goes on from the checkpoint of step 4, with what is piped into it then
    path = tmp_path / "cut.tar"
    path.write_bytes((shards / "train-2.tar").read_bytes())
    offset = header_of(path, "035.png") + 600
    with cut(path, offset).open("rb") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        with pytest.raises(RunStopped) as caught:
            pretrain.run.main(arguments)
    assert f"standard input ended after 8 samples (cut at offset {offset}; " in str(caught.value)
    trace = read_records(tmp_path / "run/trace/rank-0.jsonl")
    assert [record["step"] for record in trace] == [1, 2, 3, 4, 5, 6]
    assert trace[4]["keys"] == [f"stdin/{i:03d}" for i in range(27, 31)]


def test_a_run_reads_commands_and_resumes(
    tmp_path: Path, shards: Path, forwards: list[str]
) -> None:
    shell = [*forwards, f"data.shards=pipe:cat {shards}/train-{{0..2}}.tar", "data.workers=1"]
    with pytest.raises(UserError, match=r"set data\.allow_pipe=true"):
        pretrain.run.main(shell)
    pretrain.run.main([*shell, "data.allow_pipe=true", "optim.steps=20"])
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000020")
    pretrain.run.main([*shell, "data.allow_pipe=true", "optim.steps=20"])
    state = json.loads((tmp_path / "run/checkpoints/step-00000020/state.json").read_text())
    assert (state["step"], state["consumed"], state["read"]) == (20, 80, "sequential")
    metrics = read_records(tmp_path / "run/metrics.jsonl")
    assert metrics[-1]["step"] == 20
    assert metrics[-1]["epoch"] < 1e-9
    ledger = read_records(tmp_path / "run/bad_samples.jsonl")
    assert {entry["key"] for entry in ledger} == {f"{BAD:03d}"}
