"""Answers as a table or JSON, and on standard error what could not be read."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.text import printable
from scripts._predict.answers import Answer

_MAX_PADDING = 30  # characters; one long class name does not push all others aside


def name_unreadable(answers: Iterable[Answer], unreadable: list[Path]) -> Iterator[Answer]:
    """Pass answers on; name images that could not be read on standard error, and list them."""
    for answer in answers:
        if answer.error is not None:
            print(f"{printable(str(answer.path))}: {answer.error}", file=sys.stderr)
            unreadable.append(answer.path)
        yield answer


def write_json(answers: Iterable[Answer]) -> None:
    """Write one document, an image a line."""
    for number, answer in enumerate(answers):
        print(",\n" if number else "[\n", json.dumps(answer.record()), sep="", end="")
    print("\n]")


def write_table(answers: Iterable[Answer], paths: Sequence[Path], names: Sequence[str]) -> None:
    """Write a row an image."""
    path_width = max(len("image"), *(len(printable(str(path))) for path in paths))
    name_width = max(len("class"), min(_MAX_PADDING, max(map(len, names))))
    print(f"{'image':{path_width}}  {'class':{name_width}}  probability  next")
    for answer in answers:
        if answer.error is None:
            cells = [f"{name:{name_width}}  {value:11.2%}" for name, value in answer.classes[:1]]
            rest = ", ".join(f"{name} {value:.2%}" for name, value in answer.classes[1:])
            path = printable(str(answer.path))
            print(f"{path:{path_width}}  {''.join(cells) or '-'}  {rest}".rstrip())
