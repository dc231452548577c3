"""The labels of images with sentences: numbers in KEY.cls, or values of a key of KEY.json."""

from typing import NamedTuple

import numpy as np

from data.captions.check import check_captions
from data.captions.config import CaptionedLabelledDataConfig
from data.captions.labels import KeyedClasses, label_by_key
from data.index.manifest import Manifest
from data.labels.classes import Numbering
from data.labels.labelled import label_splits


class PairLabels(NamedTuple):
    """The classes of two splits, and how a sample's is found.

    Attributes:
        names: Of the classes, in order.
        train: The numbering of KEY.cls in the training shards; None where it is that of `names`.
        val: Of the validation shards, likewise.
        keyed: The classes where a key of KEY.json has them; else None.
    """

    names: list[str]
    train: Numbering | None = None
    val: Numbering | None = None
    keyed: KeyedClasses | None = None


def read_labels(
    train: Manifest, val: Manifest, data: CaptionedLabelledDataConfig
) -> tuple[PairLabels, np.ndarray]:
    """Read the labels of both splits, once it is sure that they have sentences.

    Returns:
        The classes, and all labels of the training samples, as `label_splits` gives them.

    Raises:
        UserError: There are no sentences, or the labels are none or do not fit together.
    """
    check_captions(train, data, "data.train")
    check_captions(val, data, data.val_key)
    if data.label_key is not None:
        keyed, values = label_by_key(train, val, data.label_key, data.max_classes)
        return PairLabels(keyed.names, keyed=keyed), values
    labels, values = label_splits(
        train, val, data.classes, fraction=data.fraction, is_multi_label=data.multi_label
    )
    return PairLabels(*labels), values
