"""The keys of captioned images, and what they refuse."""

from typing import Any

import pytest

from data.captions.config import CaptionedDataConfig
from data.settings import UserError


def test_the_defaults_are_the_papers() -> None:
    config = CaptionedDataConfig(image_size=384, long_side=640)
    assert (config.max_tokens, config.max_patches, config.vocabulary_size) == (40, 200, 30522)
    assert config.crop_area is None
    assert CaptionedDataConfig(crop_area=(0.5, 1.0)).crop_area == (0.5, 1.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_tokens": 2}, r"data\.max_tokens=2 must be at least 3"),
        ({"long_captions": "drop"}, r"data\.long_captions=drop is neither cut nor refuse"),
        ({"max_patches": 0, "long_side": 64}, r"data\.max_patches=0 must be above 0"),
        ({"max_patches": 100}, r"data\.max_patches=100 has no effect without data\.long_side"),
        ({"long_side": 64, "image_size": 96}, r"data\.long_side=64 is below data\.image_size=96"),
        ({"long_side": 64, "image_size": [32, 48]}, r"data\.image_size=\[32, 48\] has two sides"),
        ({"long_side": 64, "crop_area": (0.5, 1.0)}, "exclude each other"),
        ({"crop_area": (0.5, 2.0)}, r"data\.crop_area=\[0\.5, 2\.0\] is no range"),
        ({"vocabulary_size": 10}, r"data\.vocabulary_size=10 is too small"),
        ({"vocabulary": "a", "vocabulary_size": 500}, "leave one out"),
        ({"read": "sequential"}, r"data\.read=sequential reads no captions"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CaptionedDataConfig(**keys)
