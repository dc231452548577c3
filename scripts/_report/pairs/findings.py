"""An image-text run's figures in sentences."""

from collections.abc import Iterator, Mapping

from data.text import percent

_NO_GAIN = 1.0  # points; a validation of some hundred words tells no fewer


def of_pairs(name: str, figures: Mapping[str, float]) -> Iterator[str]:
    """Say how the objectives stand; nothing for another run's figures.

    Args:
        name: Of the split.
        figures: Of it.
    """
    if "accuracy_matching" in figures:
        yield _matching(name, figures["accuracy_matching"], figures["accuracy_matching_majority"])
    if "accuracy_words" in figures:
        yield _words(name, figures)
    if "accuracy_words_blank" in figures:
        yield _sight(figures["accuracy_words"], figures["accuracy_words_blank"])


def _matching(name: str, right: float, majority: float) -> str:
    verdict = "It is better than that" if right > majority else "It is not yet better than that"
    return (
        f"It tells of {percent(right)} of the {name} pairs rightly whether the caption belongs to "
        f"the image; always the same answer would be right for {percent(majority)}. {verdict}."
    )


def _words(name: str, figures: Mapping[str, float]) -> str:
    right, majority = figures["accuracy_words"], figures["accuracy_words_majority"]
    verdict = "It is better than that" if right > majority else "It is not yet better than that"
    return (
        f"It names {percent(right)} of the hidden word pieces of the {name} captions; always the "
        f"most frequent one would be right for {percent(majority)}. {verdict}."
    )


def _sight(right: float, blank: float) -> str:
    gain = 100 * (right - blank)
    start = f"With blank images in their place it would name {percent(blank)} of them"
    if gain < _NO_GAIN:
        return f"{start}, about as many: it does not look at the images yet."
    return f"{start}, {gain:.1f} points less: so much it reads off the images."
