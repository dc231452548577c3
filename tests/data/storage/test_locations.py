"""Where this project keeps its own files."""

from pathlib import Path

import pytest

from data.listing.shards import list_shards
from data.storage.locations import is_list, user_cache


@pytest.mark.parametrize(
    ("told", "base"), [("/c", "/c"), ("", "/home/me/.cache"), ("here", "/home/me/.cache")]
)
def test_the_cache_never_lies_in_the_folder_of_the_moment(
    monkeypatch: pytest.MonkeyPatch, told: str, base: str
) -> None:
    """It may be the user's photographs; a relative path is no cache by XDG's specification."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", told)
    assert user_cache("index") == Path(base, "masked-patch-pretraining/index")


def test_a_folder_is_no_list_whatever_its_name(tmp_path: Path) -> None:
    for folder in (tmp_path / "scans.txt", tmp_path / "photos.zip"):
        folder.mkdir()
        (folder / "a.jpg").touch()
        assert list_shards(folder, "data.shards") == [str(folder)]
    (tmp_path / "list.txt").write_text("a.jpg\n")
    names = ("scans.txt", "list.txt", "gone.LST", "list.csv")
    assert [is_list(f"{tmp_path}/{name}") for name in names] == [False, True, True, False]
