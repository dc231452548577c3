"""Pretraining, fine-tuning and features as Python calls, for notebooks and programs of one's own.

    from pretrain.api import embed, finetune, load_encoder, measure, pretrain

    run = pretrain("photos/", run_dir="runs/mine", config="configs/pretrain/small.yaml")
    features = embed(run.encoder, "photos/")

The keys are those of the command line, `**{"optim.steps": 1000}` in place of `optim.steps=1000`,
and so are the numbers, to the bit. A mistake raises `UserError`, a run that stopped `RunStopped`,
with the one line that the command prints. What a run sets for its process is put back. It takes one
process: on several GPUs start the command, `mpp pretrain`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.processes import INTERRUPTED
from data.settings import RunStopped, UserError, machine_errors
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder import load_encoder
from pretrain.machine.host import within_program
from pretrain.records.logs import read_records

if TYPE_CHECKING:
    from pretrain.evaluation.embedding import Embeddings
    from pretrain.evaluation.measures import Measures

# arguments are Any: a type checker would hold `**{"optim.steps": 1000}` against each of them
__all__ = [
    "Result",
    "RunStopped",
    "UserError",
    "embed",
    "finetune",
    "load_encoder",
    "measure",
    "pretrain",
]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    Attributes:
        run_dir: Its folder.
        encoder: The folder of its encoder, for `load_encoder`, timm and `encoder.init`.
        steps: How many it took.
        figures: The last record of metrics.jsonl by name, such as `train/loss` and `val/loss`.
    """

    run_dir: Path
    encoder: Path
    steps: int
    figures: dict[str, float]


def pretrain(data: Any = None, *, run_dir: Any = None, config: Any = (), **keys: Any) -> Result:
    """Pretrain an encoder on images without labels; the same call again resumes.

    Args:
        data: `data.shards`: a folder of images, a list of paths, or shards.
        run_dir: `run.dir`.
        config: A CONFIG.yaml or several; later ones win, and what is set here wins over all.
        keys: Any other key by its dotted name: `**{"optim.epochs": 5}`.

    Raises:
        UserError: A key or the data is wrong.
        RunStopped: The run cannot go on, or a signal came; what was committed is intact.
        KeyboardInterrupt: Ctrl-C, or a notebook's stop; the step was finished and committed.
    """
    from pretrain.run import run

    own = {"data.shards": data, "run.dir": run_dir}
    return _train(run, load(PretrainConfig, _files(config), _given(own) | keys))


def finetune(
    encoder: Any = None,
    train: Any = None,
    val: Any = None,
    *,
    run_dir: Any = None,
    config: Any = (),
    **keys: Any,
) -> Result:
    """Fine-tune an encoder on labelled images; the same call again resumes.

    Args:
        encoder: `encoder.init`: a run's folder, a `Result`, or what else that key takes.
        train: `data.train`.
        val: `data.val`.
        run_dir: `run.dir`.
        config: As of `pretrain`.
        keys: As of `pretrain`.

    Returns:
        Its `figures` have `val/accuracy`; `run_dir/result.json` has more.

    Raises:
        UserError: As of `pretrain`.
        RunStopped: As of `pretrain`.
        KeyboardInterrupt: As of `pretrain`.
    """
    from finetune.run import run

    init = encoder.run_dir if isinstance(encoder, Result) else encoder
    own = {"encoder.init": init, "data.train": train, "data.val": val, "run.dir": run_dir}
    return _train(run, load(FinetuneConfig, _files(config), _given(own) | keys))


def embed(
    encoder: Any,
    images: Any,
    *,
    layer: int = 0,
    pooling: str = "average",
    batch_size: int = 64,
    workers: int = 2,
    precision: str = "fp32",
) -> "Embeddings":
    """Return the features of each image that can be read, by a frozen encoder.

    Args:
        encoder: What `load_encoder` takes or gives, or a `Result`.
        images: A folder of images, a list of paths, or shards.
        layer: A block from 1 on; 0 is the last.
        pooling: average over the patches, the class token, both side by side; or patches, of which
            each has its own features.
        batch_size: Images a forward pass.
        workers: Loader processes; 0 decodes in this one.
        precision: fp32 or bf16.

    Raises:
        UserError: There are no such images, or the encoder has no such layer or pooling.
        RunStopped: No image can be read, or what the encoder gives is no number.
    """
    from pretrain.evaluation.embedding import EmbedConfig, embed_images

    options = EmbedConfig(layer, pooling, batch_size, workers, precision)
    return _within(lambda: embed_images(_source(encoder), images, options))


def measure(encoder: Any, images: Any, **options: Any) -> "Measures":
    """Return what can be said of a frozen encoder without labels, by layer.

    Args:
        encoder: What `load_encoder` takes or gives, or a `Result`.
        images: A folder of images, a list of paths, or shards.
        options: The fields of `MeasureConfig`.

    Raises:
        UserError: There are no such images, or fewer than features have dimensions; the encoder has
            no such layer or pooling.
        RunStopped: No image can be read, or what the encoder gives is no number.
    """
    from pretrain.evaluation.measures import MeasureConfig, measure_images

    config = MeasureConfig(**options)
    return _within(lambda: measure_images(_source(encoder), images, config))


def _source(encoder: Any) -> Any:
    return encoder.run_dir if isinstance(encoder, Result) else encoder


def _train(run: Callable[[Any], dict[str, float]], config: Any) -> Result:
    measured = _within(lambda: run(config))
    folder = Path(config.run.dir)
    last = read_records(folder / "metrics.jsonl")[-1]
    figures = {name: value for name, value in last.items() if value is not None} | measured
    return Result(folder, folder / "encoder", int(last["step"]), figures)


def _within(work: Callable[[], _Value]) -> _Value:
    """Do what a command does, as a part of this program; Ctrl-C is the program's own error."""
    try:
        with within_program(), machine_errors():
            return work()
    except RunStopped as stopped:
        if stopped.status == INTERRUPTED:
            raise KeyboardInterrupt(str(stopped)) from stopped
        raise


def _files(config: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(config)] if isinstance(config, str | Path) else [str(path) for path in config]


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the caller left to the configuration."""
    return {key: value for key, value in values.items() if value is not None}
