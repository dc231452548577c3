"""The result of a retrieval: its figures, and each query with its first candidates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from finetune.vilt.gallery import Gallery
from finetune.vilt.recall import Search

_SHOWN = 5  # first candidates of a query that are named


class Found(NamedTuple):
    """The scores of the images that could be read with their captions.

    Attributes:
        images: Images as queries, ranking captions.
        captions: Captions as queries, ranking images.
        gallery: The captions.
        names: SHARD/KEY of the images.
        about: What `result.json` says of the model and the samples.
    """

    images: Search
    captions: Search
    gallery: Gallery
    names: list[str]
    about: dict[str, Any]


def found_of(
    rows: Mapping[int, np.ndarray],
    names: Mapping[int, str],
    gallery: Gallery,
    about: dict[str, Any],
) -> Found:
    """Order the scores by images and by captions.

    Args:
        rows: float32 (U,) of each image that could be read, by its place among all samples.
        names: SHARD/KEY of those images.
        gallery: The captions of all samples; those that none of the images has are left out.
        about: What is known of the model and the samples.
    """
    used = sorted(rows)
    owned = gallery.owned[used]
    kept = np.flatnonzero(owned.any(axis=0))
    owned, texts = owned[:, kept], [gallery.texts[number] for number in kept]
    scores = np.stack([rows[position] for position in used])[:, kept]
    number, ones = owned.sum(axis=0), np.ones(len(used), np.int64)
    return Found(
        Search(scores, owned > 0, ones, number),
        Search(scores.T, owned.T > 0, number, ones),
        Gallery(gallery.tokens[kept], texts, owned, gallery.num_cut),
        [names[position] for position in used],
        about,
    )


def result_of(found: Found) -> dict[str, Any]:
    """Return what `result.json` holds: recall and chance, both ways."""
    counts = {"images": len(found.names), "captions": int(found.gallery.owned.sum())}
    figures = {
        "image_to_text": found.images.figures(),
        "text_to_image": found.captions.figures(),
    }
    return {**found.about, **counts, "distinct_captions": len(found.gallery.texts), **figures}


def cells_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result's table."""
    ways = (("image_to_text", "captions of an image"), ("text_to_image", "the image of a caption"))
    return [
        {
            "found": what,
            "among": result["captions" if way == "image_to_text" else "images"],
            **{f"accuracy/{name}": v for name, v in result[way].items() if "@" in name},
            "median rank": result[way]["median_rank"],
        }
        for way, what in ways
    ]


def ranks_of(found: Found) -> dict[str, Any]:
    """List each query with its rank and its first candidates, for a page that shows hits."""
    names, texts, owned = found.names, found.gallery.texts, found.gallery.owned
    images = zip(found.images.ranks().tolist(), found.images.first(_SHOWN), strict=True)
    captions = zip(found.captions.ranks().tolist(), found.captions.first(_SHOWN), strict=True)
    return {
        "images": [
            {
                "image": names[i],
                "captions": [texts[u] for u in np.flatnonzero(owned[i])],
                "rank": rank,
                "first": [texts[u] for u in first],
            }
            for i, (rank, first) in enumerate(images)
        ],
        "captions": [
            {
                "caption": texts[u],
                "images": [names[i] for i in np.flatnonzero(owned[:, u])],
                "rank": rank,
                "first": [names[i] for i in first],
            }
            for u, (rank, first) in enumerate(captions)
        ],
    }
