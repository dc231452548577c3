"""Speed of a training step, and of a run from shards, against timm's bare encoder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import cast

import timm
import torch
from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer

from data.index.opening import open_manifest
from data.loader import Batch, DataConfig, Request, Samples
from data.stream import Share, TrainingStream
from pretrain.corruption import CorruptionConfig
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.launch import RunConfig, start
from pretrain.loop import Trainer
from pretrain.model import MaskedPatchModel
from pretrain.optim import OptimConfig
from pretrain.targets import TargetConfig
from scripts.speed.rounds import Speeds, clock, images_per_second

RATIOS = {"step_vs_timm": ("step", "timm"), "run_vs_step": ("run", "step")}
_NO_LAST_STEP = 1_000_000_000  # the stream ends the run, before it would save itself


@dataclass(frozen=True)
class StepOptions:
    """What is measured, and for how long.

    Attributes:
        shards: Read by the real run.
        encoder: timm's name.
        image_size: Pixels a side.
        batch_size: Images a step.
        precision: fp32 or bf16.
        workers: Loader processes of the real run.
        threads: CPU threads; 0: all.
        rounds: Turns of each variant.
        seconds: Of each turn.
    """

    shards: list[str]
    encoder: str
    image_size: int
    batch_size: int
    precision: str
    workers: int
    threads: int
    rounds: int
    seconds: float


def measure_step(options: StepOptions) -> Speeds:
    """Measure three variants in turns.

    - `timm`: forward and backward of timm's encoder as it comes, on normalised float images.
    - `step`: `Trainer._step` on a batch that is ready, from uint8 images to new weights.
    - `run`: `Trainer.train`, from shards to new weights, with its records.

    Raises:
        UserError: The encoder or the shards cannot be used.
    """
    side = (options.image_size, options.image_size)
    data, run = DataConfig(workers=options.workers), _run_config(options)
    accelerator = start(run)
    encoder = make_encoder(EncoderConfig(name=options.encoder), side)
    samples = Samples(open_manifest(options.shards, "SHARDS"), side, run.seed, data.crop_area)
    stream = _InterleavedStream(samples, options)
    model = MaskedPatchModel(encoder, CorruptionConfig(), TargetConfig())
    optim = OptimConfig(batch_size=options.batch_size, steps=_NO_LAST_STEP)
    with TemporaryDirectory() as folder:
        run = _run_config(options, folder)
        trainer = Trainer(accelerator, run, optim, model, stream, [])
        ready = _pinned(samples[Request(0, 0, options.batch_size)])
        stream.others = {
            "timm": _timm_step(accelerator, options),
            "step": lambda: trainer._step(0, [ready]),
        }
        trainer.train(has_trace=False, max_bad_ratio=1.0)
    accelerator.end_training()
    return stream.speeds


def _run_config(options: StepOptions, folder: str = "unused") -> RunConfig:
    return RunConfig(
        dir=folder,
        precision=options.precision,
        threads=options.threads,
        checkpoint_every=0,
        checkpoint_minutes=0,
    )


def _timm_step(accelerator: Accelerator, options: StepOptions) -> Callable[[], None]:
    """Return the baseline: forward and backward, without loss, optimizer or uint8 input."""
    side, device = options.image_size, accelerator.device
    model = cast(
        VisionTransformer, timm.create_model(options.encoder, img_size=side, num_classes=0)
    ).to(device)
    images = torch.randn(options.batch_size, 3, side, side, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, options.precision == "bf16"):
            tokens = model.forward_features(images)
        tokens.float().mean().backward()
        model.zero_grad()

    return step


def _pinned(batch: Batch) -> Batch:
    """Put a batch where the loader would have put it."""
    if not torch.cuda.is_available():
        return batch
    return batch._replace(tensors={k: tensor.pin_memory() for k, tensor in batch.tensors.items()})


class _InterleavedStream(TrainingStream):
    """The training stream, which measures the run that reads it and lets others take their turn.

    A step lasts from the demand for its batch to the next demand, so that all of the run's own work
    is counted. What the workers read ahead while others had their turn is trained on, uncounted.
    """

    def __init__(self, samples: Samples, options: StepOptions) -> None:
        share = Share(0, 1, options.batch_size)
        super().__init__(samples, options.batch_size, share, options.workers)
        self.options = options
        self.others: dict[str, Callable[[], object]] = {}
        self.speeds = Speeds()

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Yield the steps of all rounds; the first round warms up and is not counted."""
        source = super().steps(first, last)
        size, seconds = self.batch_size, self.options.seconds
        yield next(source)
        for work in self.others.values():
            work()
        for _ in range(self.options.rounds):
            for name, work in self.others.items():
                self.speeds.add(name, images_per_second(work, size, seconds))
            for _ in range(2 * self.workers):  # read ahead
                yield next(source)
            begin, done = clock(), 0
            while not done or clock() - begin < seconds:
                yield next(source)
                done += size
            self.speeds.add("run", done / (clock() - begin))
