"""What lies below a folder: links, pipes, permissions, what systems leave there."""

import os
import socket
from pathlib import Path

import pytest

from data.folder.walk import is_readable, walk
from tests.conftest import no_root_rights


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_files_by_their_path(tmp_path: Path) -> None:
    put(tmp_path, "b/x.jpg", "a/deep/er/y.jpg", "z")
    found = walk(tmp_path)
    assert found.sizes == {"b/x.jpg": 7, "a/deep/er/y.jpg": 15, "z": 1}
    assert sorted(found.folders) == ["a", "a/deep", "a/deep/er", "b"]


def test_a_link_to_what_holds_it_ends(tmp_path: Path) -> None:
    """Two such links once made more paths than there is time for."""
    top = tmp_path / "top"
    put(top, "cat/a.jpg", "dog/b.jpg")
    put(tmp_path, "beside/c.jpg")
    (top / "cat/up").symlink_to("..")
    (top / "dog/up").symlink_to(top)
    (top / "dog/further").symlink_to(tmp_path)
    (top / "dog/itself").symlink_to("../dog")
    found = walk(top)
    assert set(found.sizes) == {"cat/a.jpg", "dog/b.jpg"}
    assert found.repeated == {"cat/up": "", "dog/up": "", "dog/further": "", "dog/itself": "dog"}


def test_a_real_folder_goes_before_a_link_to_it(tmp_path: Path) -> None:
    put(tmp_path, "top/zebra/a.jpg", "outside/sub/b.jpg")
    (tmp_path / "top/alias").symlink_to("zebra")
    (tmp_path / "top/beta").symlink_to(tmp_path / "outside")
    (tmp_path / "top/gamma").symlink_to(tmp_path / "outside/sub")
    found = walk(tmp_path / "top")
    assert set(found.sizes) == {"zebra/a.jpg", "beta/sub/b.jpg"}
    assert found.repeated == {"alias": "zebra", "gamma": "beta/sub"}
    through = walk(tmp_path / "top/beta")  # a top that is a link itself
    assert set(through.sizes) == {"sub/b.jpg"}


def test_broken_links_and_what_is_no_file(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "gone.jpg").symlink_to("nothing")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "through.jpg").symlink_to("a.jpg/below")
    (tmp_path / "good.jpg").symlink_to("a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        found = walk(tmp_path)
    assert set(found.sizes) == {"a.jpg", "good.jpg"}
    assert found.broken == ["gone.jpg", "round.jpg", "through.jpg"]
    assert found.special == ["device.jpg", "pipe.jpg", "socket.jpg"]


def test_what_systems_leave_and_what_is_hidden(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._a.jpg")
    put(tmp_path, "@eaDir/a.jpg/thumb.jpg", ".git/b.jpg", ".hidden.jpg")
    found = walk(tmp_path)
    assert set(found.sizes) == {"a.jpg"}
    assert found.hidden == [".git", ".hidden.jpg"]
    assert sorted(found.droppings) == sorted(
        ["._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir"]
    )


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "closed/a.jpg", "unsearchable/b.jpg", "open/c.jpg", "open/d.jpg")
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    modes = {"closed": 0o000, "unsearchable": 0o644, "open/d.jpg": 0o000}
    for name, mode in modes.items():
        Path(name).chmod(mode)
    with no_root_rights():
        found = walk(Path())
        readable = [name for name in ("open/c.jpg", "open/d.jpg") if is_readable(name)]
    for name in modes:
        Path(name).chmod(0o755)
    denied = "Permission denied"
    assert found.unreadable == {"closed": denied, "unsearchable/b.jpg": denied}
    assert readable == ["open/c.jpg"]


def test_a_missing_file_is_not_readable(tmp_path: Path) -> None:
    assert not is_readable(f"{tmp_path}/none")
    with pytest.raises(FileNotFoundError):
        walk(tmp_path / "none")
