"""Tars that are only read forwards: what is refused, what is watched, how commands end."""

import io
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from data.sequential.sources import TarSource, TarStream, list_sources
from data.settings import RunStopped, UserError
from data.storage.locations import Storage


def refusal(spec: object, *, allow_pipe: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        list_sources(spec, "data.shards", allow_pipe=allow_pipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def open_stream(location: str) -> TarStream:
    return TarStream(TarSource(location, location), Storage())


def tar_bytes(*members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


TAR = tar_bytes(("a.png", b"x" * 600), ("b.png", b"y" * 600))


# ---------------------------------------------------------------- naming


def test_local_shards_have_the_names_that_random_reading_gives_them(shards: Path) -> None:
    found = list_sources(
        [f"{shards}/train-*.tar", str(shards / "val-0.tar")], "k", allow_pipe=False
    )
    assert [source.name for source in found] == [
        *(f"train-{n}.tar" for n in range(3)),
        "val-0.tar",
    ]
    assert found[0].location == str(shards / "train-0.tar")


def test_commands_stand_beside_shards_and_their_braces_are_expanded(shards: Path) -> None:
    spec = [f"{shards}/val-0.tar", "pipe:cat train-{0..2}.tar"]
    found = list_sources(spec, "data.shards", allow_pipe=True)
    assert [source.name for source in found] == [
        *(f"pipe:cat train-{n}.tar" for n in range(3)),
        "val-0.tar",
    ]


@pytest.mark.parametrize("spec", ["-", ["-"], [None]])
def test_a_dash_is_standard_input(spec: object) -> None:
    """On the command line YAML makes [null] of `data.shards=-`."""
    assert list_sources(spec, "data.shards", allow_pipe=False) == [TarSource("stdin", "-")]


def test_what_cannot_be_read_is_refused(shards: Path) -> None:
    assert "standard input (-) is read alone" in refusal(["-", f"{shards}/val-0.tar"])
    assert "data.shards=pipe:cat a.tar runs a command in a shell; set data.allow_pipe=true" in (
        refusal("pipe:cat a.tar", allow_pipe=False)
    )
    assert "names the same shard twice: pipe:cat a.tar" in refusal(["pipe:cat a.tar"] * 2)
    assert "names no command" in refusal("pipe:")
    assert "balance the braces" in refusal("pipe:cat {0..2.tar")
    assert "does not exist" in refusal(f"{shards}/nothing.tar")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("curl --header 'Authorization: Bearer hunter2' https://a/b", "an authorization header"),
        ('curl -H "authorization:Basic hunter2" https://a/b', "an authorization header"),
        ("curl -H 'Authorization: Bearer '$TOKEN https://a/b", "an authorization header"),
        ("curl -H 'X-Auth-Token: hunter2' https://a/b", "a token header"),
        ("curl https://me:hunter2@a/b.tar", "a password in a URL"),
        ("curl -u me:hunter2 https://a/b", "a name and password"),
        ("curl -ume:hunter2 https://a/b", "a name and password"),
        ("curl --user=me:hunter2 https://a/b", "a name and password"),
        ("wget --password hunter2 https://a/b", "a password"),
        ("sshpass -phunter2 ssh a cat b.tar", "a password"),
        ("AWS_SECRET_ACCESS_KEY=hunter2 aws s3 cp s3://a/b -", "a secret"),
        ("curl 'https://a/b.tar?X-Amz-Signature=hunter2'", "a secret"),
        ("curl 'https://a/b.tar?token=hunter2'", "a secret"),
    ],
)
def test_a_credential_in_a_command_is_refused_and_not_repeated(command: str, what: str) -> None:
    message = refusal(f"pipe:{command}", allow_pipe=False)
    assert f"data.shards: a pipe: command seems to hold {what}, " in message
    assert "curl --netrc or --config FILE" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "command",
    [
        "curl -f --netrc https://a.b/c-{000..009}.tar",
        "curl --config secret.conf https://a:8080/b.tar",
        "curl -H @header.txt https://a/b",
        "AWS_SECRET_ACCESS_KEY=$(cat key) aws s3 cp s3://a/b.tar -",
        "docker run -u 1000:1000 image cat a.tar",
        "sort -u a.txt",
        "ssh me@host cat tokens/b.tar",
        "gsutil cat gs://a/passwords/b.tar",
    ],
)
def test_other_commands_pass(command: str) -> None:
    assert list_sources(f"pipe:{command}", "data.shards", allow_pipe=True)


# ---------------------------------------------------------------- reading


def test_a_block_at_a_time(shards: Path) -> None:
    content = (shards / "val-0.tar").read_bytes()
    with open_stream(str(shards / "val-0.tar")) as stream:
        assert [stream.read(1), stream.read(10240)] == [content[:512], content[512:1024]]


def walk(stream: TarStream) -> None:
    """Read as tarfile does: up to the end marker's first block."""
    while any(stream.read(512)):
        pass


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TAR, None),
        (TAR[:2000], "cut at offset 2000"),
        (TAR[:2048], "cut at offset 2048"),
        (b"", "0 bytes"),
        (TAR + TAR, "data after the end marker, at offset 10240: one tar a source is read"),
    ],
)
def test_damage_that_tarfile_passes_over(
    tmp_path: Path, content: bytes, expected: str | None
) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with open_stream(str(tmp_path / "a.tar")) as stream:
        walk(stream)
        assert stream.finish() == expected


def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b rest")
    with open_stream(f"{tmp_path}/a.tar.gz") as stream, pytest.raises(RunStopped) as caught:
        stream.read(512)
    assert "is compressed; unpack it, as in 'pipe:gzip -dc FILE'" in str(caught.value)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("cat {tar}; exit 22", "22"),
        ("exit 3", "3"),
        ("no-such-program-here 2>&-", "127"),
        ("cat /no/such/file 2>&- | cat", "1"),  # the first of a pipeline
        ("kill -9 $$", "-9"),
    ],
)
def test_a_failing_command_stops_the_run(shards: Path, command: str, status: str) -> None:
    with open_stream(f"pipe:{command.replace('{tar}', f'{shards}/val-0.tar')}") as stream:
        walk(stream)
        with pytest.raises(RunStopped, match=f" ended with status {status} after [0-9]+ bytes"):
            stream.finish()


def test_a_command_that_is_cut_by_its_pipeline_has_not_failed(shards: Path) -> None:
    with open_stream(f"pipe:cat {shards}/val-0.tar /dev/zero | head -c 1024") as stream:
        walk(stream)
        assert stream.finish() == "cut at offset 1024"


def test_closing_ends_a_command_and_what_it_started(tmp_path: Path) -> None:
    with open_stream(f"pipe:echo $$ > {tmp_path}/pid; sleep 1000 | cat"):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        group = int((tmp_path / "pid").read_text())
        assert is_alive(group)
    while is_alive(group):
        time.sleep(0.01)


def is_alive(group: int) -> bool:
    """Tell whether a group has processes; what init has not yet reaped does not count."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False
    )
    return not all(line.startswith("Z") for line in found.stdout.split())


def test_a_command_reads_nothing_of_our_standard_input() -> None:
    with open_stream("pipe:cat") as stream:
        assert stream.read(512) == b""
