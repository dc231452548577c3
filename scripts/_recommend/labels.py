"""Looking at labelled images: how many of each class, and how they split for a probe."""

import numpy as np

from data.index.open import open_manifest
from data.labels.labelled import read_labels, require_folders_of_classes
from data.listing.shards import list_shards
from data.settings import UserError
from scripts._recommend.facts import Labelled

_HELD_OUT = 5  # of so many shards, one is for validation


def look_at_labels(spec: str) -> Labelled:
    """Look at labelled images.

    Their own validation split judges, if they have one; else the last fifth of their shards.

    Raises:
        UserError: There are none, or one has no label.
    """
    train_spec, val_spec = _split(spec)
    train = open_manifest(spec if train_spec is None else train_spec, "LABELLED")
    require_folders_of_classes(train, "LABELLED")
    num_val = 0 if val_spec is None else open_manifest(val_spec, "probe.val").num_samples
    _, numbers = np.unique(read_labels(train, "LABELLED"), return_counts=True)
    return Labelled(
        spec,
        train_spec,
        val_spec,
        train.num_samples,
        num_val,
        len(numbers),
        int(numbers.min()),
        int(numbers.max()),
    )


def _split(spec: str) -> tuple[str | list[str] | None, str | list[str] | None]:
    """Return what the two keys of a probe should name; None where the images cannot be split."""
    train = list_shards(spec, "LABELLED")
    try:
        val = list_shards(spec, "probe.val")
    except UserError:  # by their names there are other splits, and no validation
        val = train
    if not set(train) & set(val):
        return spec, spec
    if len(train) < 2:
        return None, None
    number = max(1, len(train) // _HELD_OUT)
    return train[:-number], train[-number:]
