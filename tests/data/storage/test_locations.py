"""Where this project keeps its own files."""

from pathlib import Path

import pytest

from data.storage.locations import user_cache


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
