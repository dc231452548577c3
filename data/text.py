"""How messages count things and show names."""

from collections.abc import Sequence

_ENDS_IN_ES = ("s", "x", "ch", "sh")


def count(number: float, noun: str, plural: str | None = None) -> str:
    """Say how many there are: "1 shard", "2 shards", "1,000 classes", "1.5 epochs".

    Args:
        number: How many; a float is shown in three digits, or rounded from 100 on.
        noun: What one of them is called.
        plural: What several are called, where an ending does not say it.
    """
    several = plural or noun + ("es" if noun.endswith(_ENDS_IN_ES) else "s")
    shown = _rounded(number) if isinstance(number, float) else f"{number:,}"
    return f"{shown} {noun if shown == '1' else several}"


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def percent(fraction: float) -> str:
    """Write a fraction as a percentage: "8.5 %"."""
    return f"{fraction:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """Write a length of time in the two units that matter: "2 h 05 min", "1 min 30 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def name_some(names: Sequence[object], at_most: int = 3) -> str:
    """Name the first of many things, and how many more there are: "a, b, c and 5 more"."""
    shown = ", ".join(printable(str(name)) for name in names[:at_most])
    return shown + (f" and {len(names) - at_most:,} more" if len(names) > at_most else "")


def printable(text: str) -> str:
    r"""Show a name on one line: bytes that are not UTF-8 and control characters as \x.., \n.

    File names reach Python with such bytes as lone surrogates, which cannot be encoded.
    """
    known = escaped(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in known)


def escaped(text: str) -> str:
    r"""Return a name that can be written to any file: bytes that are not UTF-8 as \x...

    What is written down of samples (traces, the ledger) and what is held against it later name them
    so.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_text(text: str) -> bool:
    """Tell whether a text can be written in UTF-8; one of JSON may hold half of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_utf8(text: str) -> bool:
    """Tell whether a name, as Python has it from the system, is UTF-8."""
    return escaped(text) == text
