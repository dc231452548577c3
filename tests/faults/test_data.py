"""Images and members made to exhaust memory: the sample is named, and the memory stays small."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from data.batch import Request
from data.index.open import open_manifest
from data.samples import Samples
from tests.conftest import make_png
from tests.launching import SERVER
from tests.servers import flaky_http

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)

CAP = 300_000  # KiB that reading a shard may take at its peak, beyond what the process had


def png_bomb(side: int) -> bytes:
    """Make a valid black and white PNG of side x side pixels, of some 100 kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def jpeg_bomb(side: int) -> bytes:
    """Make a JPEG whose header says side x side pixels."""
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    data = bytearray(content.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _peak() -> int:
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1])


def _read_all(shard: str, answer: Path) -> None:
    """Index and read a shard; write down what was used, what was named, and the memory it took."""
    before = _peak()
    manifest = open_manifest(shard, "data.shards")
    samples = Samples(manifest, (16, 16), seed=0, crop_area=(0.08, 1.0))
    batch = samples[Request(0, 0, manifest.num_samples)]
    named = {entry.key: entry.reason for entry in batch.bad}
    used = sorted(place.key for place in batch.places)
    answer.write_text(json.dumps({"used": used, "named": named, "took": _peak() - before}))


def read_all(shard: Path, folder: Path) -> dict[str, object]:
    process = SERVER.Process(target=_read_all, args=(str(shard), folder / "answer.json"))
    process.start()
    process.join()
    assert process.exitcode == 0
    return json.loads((folder / "answer.json").read_text())


def test_bombs(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "good.png", make_png(1))
        add(tar, "large.png", png_bomb(30_000))
        add(tar, "wide.jpg", jpeg_bomb(65_000))
        add(tar, "other.png", make_png(2))
    found = read_all(tmp_path / "a.tar", tmp_path)
    assert found["used"] == ["good", "other"]
    named = found["named"]
    assert isinstance(named, dict)
    assert sorted(named) == ["large", "wide"]
    assert all("exceeds limit of 178956970 pixels" in reason for reason in named.values())
    assert isinstance(found["took"], int)
    assert found["took"] < CAP


@pytest.mark.parametrize(
    "size", [400_000_000, pytest.param(10_000_000_000, marks=pytest.mark.faults)]
)
def test_a_member_that_is_too_large_is_named(tmp_path: Path, size: int) -> None:
    """A real member of 10 GB, of zeros, in a file with a hole: indexed in pieces, never loaded."""
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        add(tar, "good.png", make_png(1))
    with shard.open("r+b") as file:
        file.seek(0)
        end = 512 + -(-len(make_png(1)) // 512) * 512
        file.seek(end)
        member = tarfile.TarInfo("huge.png")
        member.size = size
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.seek(end + 512 + -(-size // 512) * 512)
        file.write(bytes(1024))
        file.truncate()
    found = read_all(shard, tmp_path)
    assert found["used"] == ["good"]
    assert isinstance(found["named"], dict)
    assert list(found["named"]) == ["huge"]
    assert isinstance(found["took"], int)
    assert found["took"] < CAP


def test_a_header_that_declares_more_than_there_is(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "good.png", make_png(1))
    member = tarfile.TarInfo("huge.png")
    member.size = 10_000_000_000
    whole = (tmp_path / "a.tar").read_bytes()
    end = 512 + -(-len(make_png(1)) // 512) * 512
    (tmp_path / "a.tar").write_bytes(whole[:end] + member.tobuf(tarfile.GNU_FORMAT) + b"short")
    found = read_all(tmp_path / "a.tar", tmp_path)
    assert found["used"] == ["good"]
    assert found["named"] == {}  # it is the shard that is damaged; its warning says where
    assert isinstance(found["took"], int)
    assert found["took"] < CAP


# ---------------------------------------------------------------- an end that waits for nothing

READ_AND_END = """
import sys
from data.index.open import open_manifest
from data.batch import Request; from data.samples import Samples
samples = Samples(open_manifest(sys.argv[1], "data.shards"), (16, 16), seed=0, crop_area=(0.1, 1))
samples.cycle = samples  # so that it is collected when the interpreter ends, and not before
print(len(samples[Request(0, 0, 4)].places))
"""


def test_a_process_with_open_connections_ends(tmp_path: Path, shards: Path) -> None:
    """Connections that are closed while the interpreter ends are not waited for."""
    folder = tmp_path / "served"
    shutil.copytree(shards, folder)
    with flaky_http(folder) as server:
        process = subprocess.run(
            [sys.executable, "-c", READ_AND_END, f"{server.url}/train-0.tar"],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
    assert process.stdout == "4\n"
    assert "Traceback" not in process.stderr
