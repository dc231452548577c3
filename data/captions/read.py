"""Captions out of a sample's members: the lines of its txt, or a key of its json."""

import json
from collections.abc import Mapping
from typing import Any

from data.disks import one_line
from data.reading.bad import BadSample
from data.shards import JSON_EXTENSION, TEXT_EXTENSION, caption_lines, member_text
from data.text import is_text, name_some, printable


def caption_extension(caption_key: str | None) -> str:
    """Return the extension of the member that holds a sample's captions."""
    return TEXT_EXTENSION if caption_key is None else JSON_EXTENSION


def read_captions(members: Mapping[str, bytes], caption_key: str | None) -> list[str]:
    """Return a sample's captions, one or more, none of them empty.

    Args:
        members: The sample's members by extension, the one with the captions among them.
        caption_key: The key of its json that holds the caption, or a list of them; None: its txt
            has a caption a line.

    Raises:
        BadSample: There is no caption, or it is not in UTF-8.
    """
    extension = caption_extension(caption_key)
    content = members.get(extension)
    if content is None:
        raise BadSample(f"no caption: it has no .{extension} member")
    try:
        texts = caption_lines(content) if caption_key is None else _of_json(content, caption_key)
    except ValueError as error:
        raise BadSample(f".{extension}: {one_line(error)}") from error
    if not texts:
        raise BadSample(f".{extension}: the caption is empty")
    return texts


def json_object(content: bytes) -> dict[str, Any]:
    """Read a member that holds a JSON object.

    Raises:
        ValueError: It holds something else.
    """
    try:
        value = json.loads(member_text(content))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _of_json(content: bytes, key: str) -> list[str]:
    found = json_object(content)
    if key not in found:
        names = name_some(list(found), 8) or "none"
        raise ValueError(f"it has no key {printable(key)}; its keys: {names}")
    values: list[Any] = found[key] if isinstance(found[key], list) else [found[key]]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len([value for value in values if value is not None]):
        raise ValueError(f"the key {printable(key)} is no text, nor a list of texts")
    if not all(map(is_text, texts)):
        raise ValueError(f"the key {printable(key)} holds half a character, as \\ud800 is")
    return [text.strip() for text in texts if text.strip()]
