"""The two forms of the measurement: the whole one for a GPU, and a short one for a CPU."""

from dataclasses import dataclass
from pathlib import Path

from pretrain.machine.cores import usable_cores
from scripts._benchmark.gpu.attention import KERNELS
from scripts._benchmark.training.subject import Subject

_ENCODERS = {
    "S": "vit_small_patch16_224",
    "B": "vit_base_patch16_224",
    "L": "vit_large_patch16_224",
}
# B: as measured by hand; of L, all steps side by side fit into 80 GB, their graphs' memory held
_BATCHES = {"B": 192, "S": 256, "L": 48}


@dataclass(frozen=True)
class Form:
    """How much is measured.

    Attributes:
        subjects: The encoders whose steps are measured, by what they are called.
        of_run: The one whose runs from shards are measured.
        objectives: By which those runs train.
        small: The encoder for small images, trained in a run.
        num_small: Small images in its shards.
        workers: Loader processes of the runs.
        loaders: Numbers of processes by which the loader alone is measured.
        kernels: By which attention alone is measured.
        rounds: Turns of each row.
        seconds: Of each turn.
    """

    subjects: dict[str, Subject]
    of_run: str
    objectives: tuple[str, ...]
    small: Subject
    num_small: int
    workers: int
    loaders: tuple[int, ...]
    kernels: tuple[str, ...]
    rounds: int
    seconds: float


def whole(folder: Path) -> Form:
    """Return the form for a GPU: 224 px, bf16, compiled; small images as CIFAR-10's, patch 4."""
    subjects = {
        f"{size}/16": Subject(_ENCODERS[size], 224, batch, "bf16", True, 0)
        for size, batch in _BATCHES.items()
    }
    small = Subject(_small_encoder(folder, ""), 32, 1024, "bf16", True, 0)
    most = max(1, usable_cores() - 2)  # one core is the trainer's, one the system's
    loaders = sorted({most, *(number for number in (1, 2, 4, 8) if number < most)})
    return Form(
        subjects,
        "B/16",
        ("paper", "words"),
        small,
        20_000,
        most,
        tuple(loaders),
        tuple(KERNELS),
        3,
        2.0,
    )


def short(folder: Path) -> Form:
    """Return the form for a CPU, which shows that each row still runs: tiny, not compiled."""
    encoder = _small_encoder(folder, ", embed_dim: 32, depth: 2, num_heads: 2")
    tiny = Subject(encoder, 32, 4, "bf16", False, 1)
    return Form({"tiny": tiny}, "tiny", ("paper",), tiny, 64, 0, (1,), ("flash",), 1, 0.05)


def _small_encoder(folder: Path, sizes: str) -> str:
    """Write the configuration of an encoder for images of 32 px, and return its path."""
    path = folder / "small.yaml"
    path.write_text(f"encoder: {{name: vit_tiny_patch16_224, patch_size: 4{sizes}}}\n")
    return str(path)
