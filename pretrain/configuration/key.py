"""A key of a configuration."""

from typing import Any, NamedTuple

from data.config import SHARDS_TYPE


class Key(NamedTuple):
    """One key of a configuration, as `--help` shows it.

    Attributes:
        name: Dotted.
        type: In words.
        default: As YAML gives it.
        meaning: One line.
        changes_result: Whether a run that resumes must have the same value.
        kind: The type that a value must fit; Any where only `type` can say it.
        is_path: Whether `~` in front means the home folder.
        knows_none: Whether `none` is a value of its own, other than null.
        instead_of: The dotted key in whose place it is given, if any.
    """

    name: str
    type: str
    default: Any
    meaning: str
    changes_result: bool
    kind: Any
    is_path: bool
    knows_none: bool
    instead_of: str | None

    @property
    def is_list_of_text(self) -> bool:
        """Whether it takes a list of texts."""
        return self.type == SHARDS_TYPE or self.kind == tuple[str, ...]

    @property
    def is_text(self) -> bool:
        """Whether it takes text as it is written."""
        return self.is_list_of_text or self.kind in (str, str | None)
