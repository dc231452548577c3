"""What is looked at before a run begins: whether the shards hold captions, and where."""

from collections.abc import Iterator
from typing import NamedTuple

from data.captions.config import CaptionConfig
from data.captions.read import caption_extension, json_object
from data.captions.samples import images_among
from data.commands import how_to_type
from data.index.manifest import Manifest
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.settings import require
from data.shards import IMAGE_EXTENSIONS, JSON_EXTENSION, PICTURE_EXTENSIONS, TEXT_EXTENSION
from data.text import name_some, printable

_MOST_SHARDS = 4
_MOST_SAMPLES = 8  # of each


class _Look(NamedTuple):
    """One of the first samples: its name, its extensions, and the keys of its json."""

    name: str
    extensions: list[str]
    json_keys: list[str]

    @property
    def has_text(self) -> bool:
        """Whether it has a member that may hold captions."""
        return not {TEXT_EXTENSION, JSON_EXTENSION}.isdisjoint(self.extensions)


def check_captions(
    manifest: Manifest, config: CaptionConfig, key: str, option: str = "data.caption_key"
) -> None:
    """Refuse images without captions, by a look at the first samples of some shards.

    What a single sample lacks, the ledger of bad samples will say.

    Args:
        manifest: The indexed shards.
        config: Says where the captions are.
        key: The configuration key that names the shards, for messages.
        option: What names the key of KEY.json, likewise.

    Raises:
        UserError: There is no caption in any of them; most have several images; or it is a folder
            of images.
    """
    _refuse_folders(manifest, key)
    looks = list(_look(manifest))
    extension = caption_extension(config.caption_key)
    with_member = [look for look in looks if extension in look.extensions]
    if not with_member:
        require(False, f"{key}: {_without_member(looks, config.caption_key, option)}")
    if config.caption_key is not None:
        names = list(dict.fromkeys(name for look in with_member for name in look.json_keys))
        require(
            config.caption_key in names,
            f"{option}={printable(config.caption_key)} is no key of the .json of "
            f"{with_member[0].name}, which has {name_some(names, 12) or 'none'}; name the one with "
            "the captions",
        )
    _require_one_image(looks, config, key)


def _refuse_folders(manifest: Manifest, key: str) -> None:
    for place in manifest.shards.tables:
        source = printable(manifest.shards.locations[place])
        require(
            False,
            f"{key}={source} is read as images alone, and captions come from shards: make some by "
            f"`{how_to_type('shards')} {source} SHARDS --captions`, then {key}=SHARDS",
        )


def _look(manifest: Manifest) -> Iterator[_Look]:
    """Look at the first samples of shards that lie evenly among all."""
    reader = ShardReader(manifest)
    stride = -(-len(manifest.shards) // _MOST_SHARDS)
    try:
        for shard in range(0, len(manifest.shards), stride):
            number = min(_MOST_SAMPLES, manifest.shards[shard].num_samples)
            for sample in range(number):
                name = f"{manifest.shards.names[shard]}/{reader.key(shard, sample)}"
                extensions = reader.extensions(shard, sample)
                yield _Look(printable(name), extensions, _json_keys(reader, shard, sample))
    finally:
        reader.close()


def _json_keys(reader: ShardReader, shard: int, sample: int) -> list[str]:
    try:
        content = reader.read(shard, sample, {JSON_EXTENSION}).get(JSON_EXTENSION, b"{}")
        return list(json_object(content))
    except (BadSample, ValueError):  # the ledger will say it
        return []


def _without_member(looks: list[_Look], caption_key: str | None, option: str) -> str:
    """Say what the samples have in place of the member with captions, and what helps."""
    extension = caption_extension(caption_key)
    endings = dict.fromkeys(f".{name}" for look in looks for name in look.extensions)
    first = f"the first {len(looks)} samples" if len(looks) > 1 else "the only sample"
    held = f"no .{extension} in {first}, but {name_some([*endings], 8)}"
    if caption_key is not None and ".txt" in endings:
        return f"{held}; leave {option}={printable(caption_key)} out, and KEY.txt is read"
    names = list(dict.fromkeys(name for look in looks for name in look.json_keys))
    if caption_key is None and names:
        return (
            f"{held}; name the key of KEY.json that holds the captions, {option}=NAME, "
            f"of {name_some(names, 12)}"
        )
    return (
        f"{held}, so there are no captions; each image KEY.jpg needs KEY.txt with a caption a "
        f"line (make_shards.py --captions), or KEY.json with a key that {option} names"
    )


def _require_one_image(looks: list[_Look], config: CaptionConfig, key: str) -> None:
    """Raise `UserError` where most samples have several images."""
    known = PICTURE_EXTENSIONS if config.channels in (None, 1, 3) else IMAGE_EXTENSIONS
    several = [look for look in looks if len(images_among(look.extensions, known)) > 1]
    if 2 * len(several) <= len(looks):
        return
    endings = [f".{name}" for name in images_among(several[0].extensions, known)]
    require(
        False,
        f"{key}: {several[0].name} has {len(endings)} images ({name_some(endings)}), as most "
        "samples have, and a caption tells of one; write shards with one image a sample",
    )
