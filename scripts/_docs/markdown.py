"""Text that was written for a terminal, as Markdown."""

import re

_MARKS = re.compile(r"[*<|[]")


def escape(text: str) -> str:
    """Return text without what Markdown would take for emphasis, HTML, a cell's end or a link.

    What stands between backticks is code, and left as it is.
    """
    parts = text.split("`")
    return "`".join(
        part if place % 2 else _MARKS.sub(r"\\\g<0>", part) for place, part in enumerate(parts)
    )
