"""The charts of an image-text run: each objective beside what needs no image or no learning."""

from dataclasses import replace

from scripts._report.figures import Line, Plot

_ONE_ANSWER = "accuracy_matching_majority"
_PATCHES = "_patches"  # ends the names of the figures of masked patches


def of_patches(plot: Plot) -> Plot:
    """Turn a chart of masked patch pretraining into that of an image-text run's patches."""
    lines = (replace(line, key=f"{line.key}{_PATCHES}") for line in plot.lines)
    return replace(plot, title=f"Masked patches: {plot.title.lower()}", lines=tuple(lines))


def _both(key: str, name: str, colour: str, marker: str = "o") -> tuple[Line, Line]:
    """Return a figure's lines: of training, smoothed, and of validation."""
    return (
        Line(f"{name}, training", colour, "smooth", key=f"train/{key}"),
        Line(f"{name}, validation", colour, "points", marker=marker, key=f"val/{key}"),
    )


CHARTS = (
    Plot(
        "Loss",
        "loss (weighted sum)",
        (
            Line("training, each record", "blue", "raw", key="train/loss"),
            Line("training, smoothed", "blue", "smooth", key="train/loss"),
            Line("validation", "orange", "points", key="val/loss"),
        ),
        "Lower is better: the sum of the objectives below, each times its weight (loss.*). Where "
        "training falls on and validation rises, the run learns its captions by heart.",
        start_at_zero=False,
    ),
    Plot(
        "Loss by objective",
        "loss (nats)",
        (
            *_both("loss_matching", "matching", "blue"),
            *_both("loss_words", "words", "orange", "s"),
        ),
        "Lower is better. Matching begins at 0.69, what guessing costs, and often stays there "
        "for a while: words are learnt first, and matching once they mean something.",
        start_at_zero=False,
    ),
    Plot(
        "Does the caption belong to the image?",
        "accuracy (%)",
        (
            *_both("accuracy_matching", "right answers", "blue"),
            Line("one answer to all, training", "grey", "dotted", key=f"train/{_ONE_ANSWER}"),
            Line("one answer to all, validation", "grey", "dashed", key=f"val/{_ONE_ANSWER}"),
        ),
        "Higher is better; near 50 % it guesses, since about half of the captions are swapped for "
        "another image's.",
    ),
    Plot(
        "Hidden words",
        "accuracy (%)",
        (
            *_both("accuracy_words", "right words", "blue"),
            Line(
                "without the image", "orange", "joined", marker="s", key="val/accuracy_words_blank"
            ),
            Line("most frequent word", "grey", "dashed", key="val/accuracy_words_majority"),
        ),
        "Higher is better. Orange is the same model on the same validation captions with blank "
        "images: the blue points above it are what it reads off the image. As long as they lie on "
        "each other, it does not look at the image at all.",
    ),
    Plot(
        "Word-patch alignment",
        "cost, own less others'",
        _both("loss_alignment", "alignment", "green"),
        "Lower is better: what it costs to move the words of captions to the patches of their own "
        "image, less what it costs with other images. Below 0 words lie nearer to their own.",
        start_at_zero=False,
    ),
)
CUT = Plot(
    "Captions that are cut",
    "% of the word pieces",
    (Line("cut off", "orange", "raw", key="train/cut_ratio"),),
    "Lower is better: how much of the captions data.max_tokens cuts off. Raise it where that is "
    "more than a little.",
)
