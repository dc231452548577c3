"""What makes a sample bad, whatever it is read from."""

# No image is as large, but a header may claim any size, and what is read is held in memory.
MAX_MEMBER_BYTES = 256 << 20


class BadSample(Exception):  # noqa: N818 - a finding about the data, which the loader counts
    """A sample that would fail again: its bytes are not those that were indexed."""


def check_size(extension: str, num_bytes: int) -> None:
    """Raise `BadSample` for more bytes than are read."""
    if num_bytes > MAX_MEMBER_BYTES:
        limit = f"more than the {MAX_MEMBER_BYTES} that are read"
        raise BadSample(f"{extension}: {num_bytes} bytes, {limit}")
