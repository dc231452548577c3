"""The configuration of what an encoder is measured by while it is pretrained: `probe.*`."""

from dataclasses import dataclass
from typing import Any

from data.config import SHARDS_TYPE
from data.settings import require, setting

PENALTY = 10.0  # of the ridge, on standardised features
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the logistic regression, likewise
NEIGHBOURS = 20
DISTANCES = ("cosine", "euclidean")  # by which patches are near
MOST_PAIRS = 1_000_000  # that a search for duplicates finds at most
ATTENTIVE, EFFICIENT = "attentive", "efficient"
PATCH_HEADS = (ATTENTIVE, EFFICIENT)  # that pool patches in their own way


@dataclass(frozen=True)
class ProbeConfig:
    """How the encoder is measured while it is pretrained; the losses are the same without it."""

    train: Any = setting(
        None,
        "labelled images that few-shot and k-NN learn from, as data.train has them; default: none",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )
    val: Any = setting(
        None,
        "labelled images that they are judged on, in the same forms",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )
    classes: str | None = setting(
        None,
        "file with a class name a line for both; default: classes.txt beside the shards, if there",
        changes_result=False,
    )
    images: Any = setting(
        None,
        "images without labels, for RankMe, alpha-ReQ and dead dimensions; default: none",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )
    every: int = setting(
        1000, "steps between measurements; 0: only at the end", changes_result=False
    )
    shots: tuple[int, ...] = setting(
        (1, 5, 10), "labelled images a class for few-shot; [] leaves it out", changes_result=False
    )
    num_seeds: int = setting(3, "choices of those images; the mean is logged", changes_result=False)
    neighbours: int = setting(NEIGHBOURS, "nearest images that vote in k-NN", changes_result=False)
    layer: int = setting(
        0,
        "block whose output is read, from 1 (the middle ones often do better); 0: the last",
        changes_result=False,
    )
    pooling: str = setting(
        "average",
        "average over patches, class (no loss in pretraining), or both",
        changes_result=False,
    )

    def __post_init__(self) -> None:
        for given, missing in (("train", "val"), ("val", "train")):
            require(
                bool(getattr(self, missing)) or not getattr(self, given),
                f"probe.{given} is set, but probe.{missing} is missing; name labelled shards for "
                "both, or for neither",
            )
        require(
            bool(self.train) or self.classes is None,
            f"probe.classes={self.classes} names the classes of probe.train and probe.val, which "
            "are missing; name labelled shards, or leave it out",
        )
        require(self.every >= 0, f"probe.every={self.every} is below 0; 0: only at the end")
        check_shots(self.shots, "probe.shots")
        for key in ("num_seeds", "neighbours"):
            value = getattr(self, key)
            require(value > 0, f"probe.{key}={value} must be above 0")


def check_shots(shots: tuple[int, ...], key: str) -> None:
    """Raise `UserError` unless all are numbers from 1."""
    require(
        all(num > 0 for num in shots),
        f"{key}={list(shots)} must be numbers from 1; try [1, 5, 10, 25]",
    )
