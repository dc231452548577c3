"""The result of a retrieval: its figures, and each query with its first candidates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from finetune.vilt.gallery import Gallery
from finetune.vilt.recall import Search
from finetune.vilt.reranking import rerank

_SHOWN = 5  # first candidates of a query that are named


_WAYS = (("image_to_text", "captions of an image"), ("text_to_image", "the image of a caption"))


class Ways(NamedTuple):
    """A search both ways.

    Attributes:
        images: Images as queries, ranking captions.
        captions: Captions as queries, ranking images.
    """

    images: Search
    captions: Search

    def figures(self) -> dict[str, dict[str, float]]:
        """Return recall and chance of each way."""
        return {way: search.figures() for (way, _), search in zip(_WAYS, self, strict=True)}


class Found(NamedTuple):
    """The scores of the images that could be read with their captions.

    Attributes:
        best: In the order that counts.
        by_head: In that of the head of matching, where the best pairs were read again; else None.
        gallery: The captions.
        names: SHARD/KEY of the images.
        about: What `result.json` says of the model and the samples.
    """

    best: Ways
    by_head: Ways | None
    gallery: Gallery
    names: list[str]
    about: dict[str, Any]


def found_of(
    rows: Mapping[int, np.ndarray],
    likelihoods: Mapping[int, np.ndarray] | None,
    names: Mapping[int, str],
    gallery: Gallery,
    about: dict[str, Any],
) -> Found:
    """Order the scores by images and by captions.

    Args:
        rows: float32 (U,) of each image that could be read, by its place among all samples.
        likelihoods: float32 (U,) of the same images, of the pairs that were read again.
        names: SHARD/KEY of those images.
        gallery: The captions of all samples; those that none of the images has are left out.
        about: What is known of the model and the samples.
    """
    used = sorted(rows)
    owned = gallery.owned[used]
    kept = np.flatnonzero(owned.any(axis=0))
    owned, texts = owned[:, kept], [gallery.texts[number] for number in kept]
    number, ones = owned.sum(axis=0), np.ones(len(used), np.int64)

    def pick(of_images: Mapping[int, np.ndarray]) -> np.ndarray:
        return np.stack([of_images[position] for position in used])[:, kept]

    def order(scores: np.ndarray) -> Ways:
        return Ways(
            Search(scores, owned > 0, ones, number), Search(scores.T, owned.T > 0, number, ones)
        )

    scores = pick(rows)
    by_head = order(scores)
    best = by_head if likelihoods is None else order(rerank(scores, pick(likelihoods)))
    return Found(
        best,
        None if likelihoods is None else by_head,
        Gallery(gallery.tokens[kept], gallery.words[kept], texts, owned, gallery.num_cut),
        [names[position] for position in used],
        about,
    )


def result_of(found: Found) -> dict[str, Any]:
    """Return what `result.json` holds: recall and chance, both ways."""
    counts = {"images": len(found.names), "captions": int(found.gallery.owned.sum())}
    counts["distinct_captions"] = len(found.gallery.texts)
    head = {} if found.by_head is None else {"by_head": found.by_head.figures()}
    return {**found.about, **counts, **found.best.figures(), **head}


def cells_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result's table."""
    orders = [(result, "")]
    if "by_head" in result:
        orders = [(result["by_head"], ", by the head alone"), (result, ", reranked")]
    return [
        {
            "found": f"{what}{how}",
            "among": result["captions" if way == "image_to_text" else "images"],
            **{f"accuracy/{name}": v for name, v in figures[way].items() if "@" in name},
            "median rank": figures[way]["median_rank"],
        }
        for way, what in _WAYS
        for figures, how in orders
    ]


def ranks_of(found: Found) -> dict[str, Any]:
    """List each query with its rank and its first candidates, for a page that shows hits."""
    names, texts, owned = found.names, found.gallery.texts, found.gallery.owned
    images, captions = (
        zip(search.ranks().tolist(), search.first(_SHOWN), strict=True) for search in found.best
    )
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
