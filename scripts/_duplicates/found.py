"""What was found to be alike."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from pretrain.evaluation.search.pairs import Pairs, find_groups
from scripts._duplicates.archive import Archive


@dataclass(frozen=True)
class Found:
    """The images that were compared, and the pairs of them.

    Attributes:
        archive: All images.
        names: SHARD/KEY of those that were compared.
        positions: Theirs in the archive.
        pairs: Places among `names`.
    """

    archive: Archive
    names: list[str]
    positions: list[int]
    pairs: Pairs

    @cached_property
    def groups(self) -> dict[int, int]:
        """The group of each image that is in a pair."""
        return find_groups(self.pairs)

    @cached_property
    def members(self) -> dict[int, list[int]]:
        """The images of each group, by name."""
        members: dict[int, list[int]] = defaultdict(list)
        for place, group in self.groups.items():
            members[group].append(place)
        return {g: sorted(places, key=self.names.__getitem__) for g, places in members.items()}

    @property
    def num_spare(self) -> int:
        """How many images could go if one of each group stays."""
        return len(self.groups) - len(self.members)
