"""The keys of captioned images: `data.*` of entry points that read images and sentences."""

from dataclasses import dataclass

from data.config import DataConfig, ImageConfig, LabelledDataConfig
from data.settings import require, setting

_VOCABULARY_SIZE = 30522  # BERT's
_MAX_PATCHES = 200  # the paper's, section 4.2
_LONG_CAPTIONS = ("cut", "refuse")


@dataclass(frozen=True)
class CaptionConfig(ImageConfig):
    """The keys that every stream of captioned images has."""

    # null: a crop may cut off what the caption tells of
    crop_area: tuple[float, float] | None = setting(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, "range of a training crop's area, as a fraction; default: the image as in validation"
    )
    caption_key: str | None = setting(
        None, "key of KEY.json with the caption, or a list of them; default: KEY.txt, one a line"
    )
    max_tokens: int = setting(40, "word pieces of a caption, [CLS] and [SEP] among them")
    long_captions: str = setting(
        "cut", "a caption of more than max_tokens: cut (and counted), or refuse (a bad sample)"
    )
    long_side: int | None = setting(
        None,
        "keep each image's aspect: longest side in pixels, image_size the short one; "
        "default: a crop",
    )
    max_patches: int = setting(
        _MAX_PATCHES, "with long_side: patches of an image that enter the model while training"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            _holds_a_word(self.max_tokens),
            f"data.max_tokens={self.max_tokens} must be at least 3: [CLS], a word piece and [SEP]",
        )
        require(
            self.long_captions in _LONG_CAPTIONS,
            f"data.long_captions={self.long_captions} is neither cut nor refuse",
        )
        require(
            self.max_patches > 0,
            f"data.max_patches={self.max_patches} must be above 0; the paper's is {_MAX_PATCHES}",
        )
        self._check_long_side()

    def _check_long_side(self) -> None:
        if self.long_side is None:
            require(
                self.max_patches == _MAX_PATCHES,
                f"data.max_patches={self.max_patches} has no effect without data.long_side; leave "
                "it out",
            )
            return
        require(
            self.crop_area is None,
            f"data.crop_area={self.crop_area} and data.long_side={self.long_side} exclude each "
            "other: the one crops, the other keeps the whole image; leave one out",
        )
        short, other = self.size or (1, 1)
        require(
            short == other,
            f"data.image_size={self.image_size} has two sides; with data.long_side give one, the "
            "short side",
        )
        require(
            self.long_side >= short,
            f"data.long_side={self.long_side} is below data.image_size={short}, the short side; "
            "try 5/3 of it",
        )


def _holds_a_word(max_tokens: int | None) -> bool:
    return max_tokens is None or max_tokens >= 3  # None: left to encoder.init


@dataclass(frozen=True)
class CaptionedDataConfig(  # pyright: ignore[reportIncompatibleVariableOverride] - crop_area
    CaptionConfig, DataConfig
):
    """The images and sentences that pretraining reads."""

    # a resume compares what the vocabulary holds, not where it lies
    vocabulary: str | None = setting(
        None,
        "a tokenizer.json, or a vocab.txt of BERT; default: learnt from the captions at the start",
        changes_result=False,
        is_path=True,
        instead_of="data.vocabulary_size",
    )
    vocabulary_size: int = setting(_VOCABULARY_SIZE, "word pieces of a vocabulary that is learnt")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.resident is not True,
            "data.resident=true keeps images without their captions; leave it out",
        )
        require(
            self.read == "random",
            f"data.read={self.read} reads no captions, as a swapped one is that of another place "
            "in the order; set data.read=random",
        )
        require(
            self.vocabulary_size >= 100,
            f"data.vocabulary_size={self.vocabulary_size} is too small; give at least 100",
        )
        require(
            self.vocabulary is None or self.vocabulary_size == _VOCABULARY_SIZE,
            f"data.vocabulary_size={self.vocabulary_size} is for a vocabulary that is learnt, and "
            f"data.vocabulary={self.vocabulary} is there; leave one out",
        )


@dataclass(frozen=True)
class CaptionedLabelledDataConfig(  # pyright: ignore[reportIncompatibleVariableOverride] - crop_area
    CaptionConfig, LabelledDataConfig
):
    """The labelled images and sentences that fine-tuning reads."""

    max_tokens: int | None = setting(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, "word pieces of a sentence, [CLS] and [SEP] among them; default: encoder.init's"
    )
    long_side: int | None = setting(
        None,
        "keep each image's aspect: longest side in pixels, image_size the short one; "
        "default: as encoder.init",
    )
    label_key: str | None = setting(
        None, "key of KEY.json whose values are the classes; default: the numbers of KEY.cls"
    )
    max_classes: int | None = setting(
        None, "with label_key: the most frequent values are classes, others wrong; default: all"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.augment is None,
            f"data.augment={self.augment} is for images alone: turned or cut ones may belie a "
            "sentence; leave it out",
        )
        require(
            self.max_classes is None or self.max_classes > 1,
            f"data.max_classes={self.max_classes} must be above 1; VQA has 3129",
        )
        if self.label_key is None:
            require(
                self.max_classes is None,
                f"data.max_classes={self.max_classes} needs data.label_key; leave it out",
            )
            return
        for key in ("multi_label", "classes"):
            value = getattr(self, key)
            require(
                not value,
                f"data.{key}={value} is for the class numbers of KEY.cls, and "
                f"data.label_key={self.label_key} is given; leave one out",
            )
        require(
            self.label_key != self.caption_key,
            f"data.label_key={self.label_key} is data.caption_key, too: the sentence would be the "
            "answer; name another key",
        )
