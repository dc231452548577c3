"""The arguments of a quick measure of a frozen encoder."""

from pathlib import Path

import pytest


@pytest.fixture
def quick_probe(tmp_path: Path, shards: Path, encoder: list[str]) -> list[str]:
    """Give the arguments of a quick probe, whose result lies in `out`."""
    return [
        *encoder,
        f"data.train={shards}/train-*.tar",
        f"data.val={shards}/val-0.tar",
        "data.workers=0",
        "probe.batch_size=4",
        "probe.threads=1",
        f"probe.dir={tmp_path}/out",
    ]
