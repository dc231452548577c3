"""Whether a shard's samples are what was meant, as a key ends at the first dot of a name."""

from collections import Counter
from collections.abc import Iterable

from data.shards import has_image
from data.text import count, name_some, printable

_FIRST_DOT = "a key ends at the first dot of a name, so names should have one, as in 0001.jpg"


class Looks:
    """Looks at one sample after the other: whether it has an image, and other images beside it."""

    def __init__(self) -> None:
        self._num_samples = self._num_without = 0
        self._first_without: tuple[str, list[str]] = "", []
        self._dotted: Counter[str] = Counter()  # images whose extension has a dot, by that
        self._first_dotted: dict[str, str] = {}  # the first sample of each

    def add(self, key: str, extensions: Iterable[str]) -> None:
        """Look at one sample."""
        self._num_samples += 1
        if not has_image(extensions):
            self._num_without += 1
            if self._num_without == 1:
                self._first_without = key, list(extensions)
            return
        for extension in extensions:
            if "." in extension and has_image([extension.rpartition(".")[2]]):
                self._dotted[extension] += 1
                self._first_dotted.setdefault(extension, key)

    def refusal(self) -> tuple[str, str] | None:
        """Say that no sample has an image, and what there is; None if one has, or of no sample."""
        if not 0 < self._num_without == self._num_samples:
            return None
        return f"holds {count(self._num_samples, 'sample')} and no image", f": {self._members()}"

    def doubt(self) -> str | None:
        """Say what is perhaps not meant so; None if nothing is."""
        if self._num_without == 0:
            return self._merged()
        number = f"{self._num_without:,} of its {count(self._num_samples, 'sample')}"
        verb = "has" if self._num_without == 1 else "have"
        return f"{number} {verb} no image: {self._members()}"

    def _members(self) -> str:
        """Say what the first sample without an image has."""
        key, extensions = self._first_without
        endings = name_some([f".{extension}" for extension in extensions])
        has_dots = any("." in extension for extension in extensions)
        remedy = _FIRST_DOT if has_dots else "images end in .jpg, .png and the like"
        return f"the members of {printable(key)} end in {endings}; {remedy}"

    def _merged(self) -> str | None:
        """Name images that became members of another image's sample.

        An extension such as `seg.png` that most samples have is a member's name. One that few have,
        or that begins with a digit, as in photo.1.jpg, is rather a part of a file's name.
        """
        merged = {
            extension: number
            for extension, number in self._dotted.items()
            if extension[0].isdigit() or 2 * number < self._num_samples
        }
        if not merged:
            return None
        extension = next(iter(merged))
        key = self._first_dotted[extension]
        names = [printable(name) for name in (f"{key}.{extension}", key)]
        number = sum(merged.values())
        verb = "is" if number == 1 else "are"
        example = f"{names[0]} belongs to the sample {names[1]}, which has an image"
        return f"{count(number, 'image')} {verb} not used: {example}; {_FIRST_DOT}"
