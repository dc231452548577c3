"""Captions out of a sample's members, and why there is none."""

import json

import pytest

from data.captions.read import read_captions
from data.reading.bad import BadSample


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        (b"a cat", ["a cat"]),
        (b"a cat\ntwo cats\n", ["a cat", "two cats"]),
        (b"\xef\xbb\xbfa cat\r\n\r\n  two cats \r", ["a cat", "two cats"]),
        ("caf\u00e9\u2028bar".encode(), ["caf\u00e9\u2028bar"]),
    ],
)
def test_a_txt_has_a_caption_a_line(content: bytes, captions: list[str]) -> None:
    assert read_captions({"jpg": b"", "txt": content}, None) == captions


@pytest.mark.parametrize(
    ("value", "captions"),
    [("a cat", ["a cat"]), (["a cat", None, " ", "b"], ["a cat", "b"]), ("a\ncat", ["a\ncat"])],
)
def test_a_json_has_them_under_a_key(value: object, captions: list[str]) -> None:
    content = b"\xef\xbb\xbf" + json.dumps({"caption": value, "url": ""}).encode()
    assert read_captions({"json": content}, "caption") == captions


@pytest.mark.parametrize(
    ("members", "key", "reason"),
    [
        ({"jpg": b""}, None, r"no caption: it has no \.txt member"),
        ({"txt": b"a"}, "caption", r"no caption: it has no \.json member"),
        ({"txt": b" \n\n"}, None, r"\.txt: the caption is empty"),
        ({"txt": b"caf\xe9"}, None, r"\.txt: not in UTF-8 \(byte 3\)"),
        ({"txt": b"a" * (5 << 20)}, None, r"\.txt: 5242880 bytes, more than a caption has"),
        ({"json": b"{'a'"}, "caption", r"\.json: no JSON"),
        ({"json": b"[" * 100_000}, "caption", r"\.json: nested too deeply"),
        ({"json": b"caf\xe9"}, "caption", r"\.json: not in UTF-8"),
        ({"json": b"[]"}, "caption", r"\.json: no JSON object"),
        ({"json": b'{"url": 1, "text": ""}'}, "caption", r"no key caption; its keys: url, text"),
        ({"json": b'{"caption": 1}'}, "caption", "the key caption is no text, nor a list of texts"),
        ({"json": b'{"caption": null}'}, "caption", r"\.json: the caption is empty"),
        ({"json": b'{"caption": ["a", 2]}'}, "caption", "is no text, nor a list of texts"),
        ({"json": b'{"caption": "\\ud83d"}'}, "caption", "holds half a character"),
    ],
)
def test_why_there_is_no_caption(members: dict[str, bytes], key: str | None, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        read_captions(members, key)
