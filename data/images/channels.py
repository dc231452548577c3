"""How many channels an image file holds, from its header."""

import io

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from data.images.levels import is_deep
from data.images.multichannel import is_array


def held_channels(content: bytes) -> int:
    """Return the number of channels as which an image should be read: 3 for what is not known.

    That is the third side of a NumPy array, the pages of a grey TIFF, 1 of other grey images, and
    else 3.
    """
    try:
        if is_array(content):
            shape = np.load(io.BytesIO(content), allow_pickle=False).shape
            return shape[2] if len(shape) == 3 else 1
        image = Image.open(io.BytesIO(content))
    except Exception:  # damaged, which decoding it will say
        return 3
    is_grey = image.mode in ("1", "L", "LA", "La") or is_deep(image)
    if not is_grey:
        return 3
    return getattr(image, "n_frames", 1) if isinstance(image, TiffImageFile) else 1
