"""The best pairs again, by what the words of a caption say of an image.

The head of matching has learnt from a yes or no for each pair, the words from each word: they see
more, and take several passes a pair. So only the candidates of the head are read again.
"""

import numpy as np


def candidates_of(scores: np.ndarray, number: int) -> np.ndarray:
    """Mark the best captions of each image and the best images of each caption.

    Args:
        scores: float32 (N, U), of images with captions.
        number: How many are best; of equal scores the first.

    Returns:
        bool (N, U).
    """
    is_candidate = np.zeros(scores.shape, np.bool_)
    for axis in (0, 1):
        best = np.argsort(-scores, axis=axis, kind="stable").take(range(number), axis, mode="clip")
        np.put_along_axis(is_candidate, best, values=True, axis=axis)
    return is_candidate


def rerank(scores: np.ndarray, likelihoods: np.ndarray) -> np.ndarray:
    """Add to the log odds of candidates the log probability that the caption speaks of the image.

    That is Bayes' rule with equal chances for the images beside which the caption was read:
    P(image | caption) = P(caption | image) / sum over images. Without the division, captions that
    are likely beside any image would come first. All other pairs stand behind, in their order.

    Args:
        scores: float32 (N, U), log odds by the head of matching.
        likelihoods: float32 (N, U), log P(caption | image); NaN for what is no candidate.

    Returns:
        float64 (N, U).

    Source: Lin et al. 2024 (arXiv:2306.01879), for the division.
    """
    is_candidate = ~np.isnan(likelihoods)
    known = np.where(is_candidate, likelihoods.astype(np.float64), -np.inf)
    best = known.max(axis=0, keepdims=True)
    total = np.exp(known - best).sum(axis=0, keepdims=True)
    with np.errstate(divide="ignore"):
        reranked = scores + (known - best) - np.log(total)
    lowest = reranked[is_candidate].min()
    return np.where(is_candidate, reranked, scores - scores.max() + lowest - 1)
