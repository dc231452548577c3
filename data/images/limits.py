"""What an image may be: how large, and of which channels it is converted."""

from data.images.levels import UnreadableImage

MODES = {1: "L", 3: "RGB"}  # Pillow's, to which any common image is converted
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
TOO_LARGE = "cut it into tiles"


def check_size(width: int, height: int, channels: int) -> None:
    """Refuse what would take too much memory, before it is taken.

    Raises:
        UnreadableImage: It has over `MAX_PIXELS` pixels, or three times as many values.
    """
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width}x{height} pixels, over {MAX_PIXELS}; {TOO_LARGE}")
    if width * height * channels > 3 * MAX_PIXELS:
        size = f"{width}x{height}x{channels}"
        raise UnreadableImage(f"{size} values, over {3 * MAX_PIXELS}; {TOO_LARGE}")
