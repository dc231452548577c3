"""The steps of a fine-tuning run: trained, validated, and its best step told and handed on."""

import json
import logging
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from data.config import LabelledDataConfig
from data.settings import memory_errors
from data.stream import TrainingStream
from data.text import count
from finetune.tuning.config import Tuned
from finetune.tuning.metrics import Figures
from finetune.tuning.validate import Validation, judge_result
from pretrain.training.best import Best
from pretrain.training.claim import claim
from pretrain.training.contract import Evaluator
from pretrain.training.length.rehearsal import fit_minutes
from pretrain.training.trainer import Trainer

RESULT = "result.json"
logger = logging.getLogger(__name__)


class Ended(NamedTuple):
    """An ended run.

    Attributes:
        figures: The last record's, with the best step's of `val/`; of a run that was finished
            before, what is measured now.
        facts: What `result.json` says of the run beside its figures.
    """

    figures: dict[str, float]
    facts: dict[str, Any]


def tune(
    accelerator: Accelerator,
    config: Tuned,
    model: Any,
    stream: TrainingStream,
    validation: Validation,
    begun: float,
    prepare: Callable[[], object],
) -> Ended:
    """Train a classifier to its end, and validate what is handed on.

    Args:
        accelerator: What `start` gave.
        config: The run's.
        model: A classifier, as `Validation` takes it.
        stream: The training samples of this rank.
        validation: Measures it; has the figures of what is handed on afterwards.
        begun: When the process began, for `run.minutes`.
        prepare: Is called once the run's folder is held, before anything is trained.
    """
    best = Best(_figure(config.data), config.run.patience) if config.run.keep_best else None
    with claim(accelerator, config), memory_errors("a smaller run.micro_batch_size"):
        prepare()
        evaluators = [Evaluator("val", config.run.eval_every, validation)]
        config = fit_minutes(accelerator, config, model, stream, evaluators, begun)
        if best is not None:
            _warn_of_no_choice(config, stream)
        trainer = Trainer.of(accelerator, config, model, stream, evaluators, best=best)
        figures = trainer.train()
        if trainer.load_best() or validation.figures is None:
            measured = validation(trainer.training.best)
            judge_result(measured, config.data.max_bad_ratio)
            figures |= {f"val/{name}": value for name, value in measured.figures.items()}
    facts = {
        "encoder.init": config.encoder.init,
        "encoder.like": config.encoder.like,
        "steps": trainer.done,
        "epochs": trainer.done / stream.steps_per_epoch,
        **({"best_step": best.step} if best is not None else {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return Ended(figures, facts)


def _figure(data: LabelledDataConfig) -> str:
    """Name the figure by which the best step is chosen."""
    if data.multi_label:
        return "val/map"
    return "val/accuracy_balanced" if data.balance else "val/accuracy"


def _warn_of_no_choice(config: Tuned, stream: TrainingStream) -> None:
    if config.run.eval_every >= config.optim.num_steps:
        logger.warning(
            "run.keep_best=true has no choice: run.eval_every=%d leaves one validation, after "
            "the last of %s; for one an epoch, set it to %d",
            config.run.eval_every,
            count(config.optim.num_steps, "step"),
            stream.steps_per_epoch,
        )


def report(folder: Path, figures: Figures, names: list[str], facts: dict[str, Any]) -> str:
    """Write `result.json`, and return what counts most of it, in a line."""
    scalars = {key: value if isfinite(value) else None for key, value in figures.scalars.items()}
    result = {**scalars, **facts, "classes": names, **figures.details}
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    main_figure = "accuracy" if "accuracy" in figures.scalars else "map"
    name = {"accuracy": "top-1 accuracy", "map": "mean average precision"}[main_figure]
    steps = count(facts["steps"], "step")
    when = f"after {steps}"
    if "best_step" in facts:
        when = f"at step {facts['best_step']}, the best by validation of {steps}"
    return f"{name} {figures.scalars[main_figure]:.2%} {when}"
