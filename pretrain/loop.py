"""The training loop that pretraining and fine-tuning share.

It sees a model only as `model(batch) -> Output` and `model.summarise(sums) -> figures`. Everything
random is a function of (seed, step, rank), the learning rate of the step, the batch of the
position; so the state of a run is its weights and one integer.
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from data.loader import Batch, LedgerEntry
from data.randomness import derive
from data.settings import require
from data.stream import TrainingStream
from pretrain import checkpoint
from pretrain.checkpoint import Training
from pretrain.encoder import choose_attention
from pretrain.launch import RunConfig, main_process_first
from pretrain.metrics import Progress, RunLogs, cut_logs_back
from pretrain.model import Objective, Output, Sums
from pretrain.optim import OptimConfig, make_optimizer, set_lr

logger = logging.getLogger(__name__)


class Trainer:
    """One run: from its newest checkpoint, or from the start, to its last step.

    Args:
        accelerator: What `start` gave.
        run: Where and how often.
        optim: How long and how fast.
        model: An `Objective` whose parameters are trained.
        stream: The training samples of this rank.
        validation: Makes this rank's validation batches; None validates nothing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunConfig,
        optim: OptimConfig,
        model: Any,
        stream: TrainingStream,
        validation: Callable[[], Iterable[Batch]] | None,
    ) -> None:
        self.accelerator = accelerator
        self.run = run
        self.optim = optim
        self.stream = stream
        self.validation = validation
        self.folder = Path(run.dir)
        choose_attention(model.encoder, accelerator.device, accelerator.mixed_precision)
        optimizer = make_optimizer(model, model.encoder, optim)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        ema = ModelEmaV3(model, decay=optim.ema) if optim.ema else None
        self.training = Training(model, self.optimizer.optimizer, ema, accelerator.scaler)
        self.objective: Objective = model
        self._bad: list[tuple[int, LedgerEntry]] = []
        self._last_commit = time.monotonic()
        self._speed = _Speedometer(optim.batch_size)

    def train(self, trace: bool) -> dict[str, float]:
        """Train to the last step; return the last record's figures.

        Args:
            trace: Write the keys of each step's samples.
        """
        first, last = self._resume(), self.optim.steps
        if first == last:
            return {}
        record: dict[str, float] = {}
        rank = self.accelerator.process_index
        self._logs = RunLogs(self.folder, rank, trace)
        with closing(self._logs), Progress(first, last, is_shown=rank == 0) as progress:
            for step, batches in enumerate(self.stream.steps(first, last), start=first):
                self._speed.data_arrived()
                sums, norm = self._step(step, batches)
                done = step + 1
                self._write_trace(done, batches)
                self._speed.step_done()
                if self._is_due(done, self.run.eval_every) or done % self.run.log_every == 0:
                    record = self._log(done, sums, norm)
                    progress.show(record)
                if self._is_commit_due(done):
                    self._commit(done)
                progress.advance()
        return record

    def _step(self, step: int, batches: list[Batch]) -> tuple[Sums, Tensor | None]:
        """Take one optimizer step over this rank's micro-batches; return its sums and norm."""
        accelerator = self.accelerator
        weight = sum((batch.tensors["weight"].sum() for batch in batches), torch.zeros(()))
        # the loss is divided by the global weight; DDP averages over ranks, hence the factor
        total = reduce(accelerator, weight.to(accelerator.device)).clamp(min=1)
        scale = accelerator.num_processes / total
        set_lr(self.optimizer, self.optim.lr_at(step))
        self.wrapped.train()
        sums: Sums = {}
        for number, batch in enumerate(batches):
            # drop-path and dropout draw from the global generator
            torch.manual_seed(derive(self.run.seed, step, number, accelerator.process_index))
            is_last = number == len(batches) - 1
            with nullcontext() if is_last else accelerator.no_sync(self.wrapped):
                output: Output = self.wrapped(to_device(batch.tensors, accelerator.device))
                accelerator.backward(output.loss * scale)
            sums = add_sums(sums, output.sums)
            self._bad += [(step + 1, entry) for entry in batch.bad]
        norm = None
        if self.optim.grad_clip:
            norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), self.optim.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.training.ema is not None:
            self.training.ema.update(self.training.model)
        return sums, norm

    # ---- writing down

    def _is_due(self, done: int, every: int) -> bool:
        return done == self.optim.steps or (every > 0 and done % every == 0)

    def _log(self, done: int, sums: Sums, norm: Tensor | None) -> dict[str, float]:
        """Write a step's record; the step's own values over all ranks, in full precision."""
        figures = self.objective.summarise(reduce_sums(self.accelerator, sums))
        step = done - 1
        record: dict[str, float] = {
            "step": done,
            "epoch": done / self.stream.steps_per_epoch,
            **{f"train/{name}": value for name, value in figures.items()},
            "optim/lr": self.optim.lr_at(step),
            **({"optim/grad_norm": float(norm)} if norm is not None else {}),
            **self._speed.read(),
        }
        if self.validation is not None and self._is_due(done, self.run.eval_every):
            figures = evaluate(self.accelerator, self.training.best, self.validation())
            record |= {f"val/{name}": value for name, value in figures.items()}
        if self._logs.metrics is not None:
            self._logs.metrics.write(record)
        self._write_ledger()
        self._speed.restart()
        return record

    def _write_trace(self, done: int, batches: list[Batch]) -> None:
        if self._logs.trace is None:
            return
        epoch = self.stream.epoch(done - 1)
        names = [place.name for batch in batches for place in batch.places]
        self._logs.trace.write({"step": done, "epoch": epoch, "keys": names})

    def _write_ledger(self) -> None:
        """Write the bad samples that any rank has met since the last time."""
        entries: list[tuple[int, LedgerEntry]] = gather_object(self._bad)
        self._bad = []
        if self._logs.ledger is None:
            return
        for step, entry in sorted(entries):
            logger.warning("bad sample: %s/%s: %s", entry.shard, entry.key, entry.reason)
            self._logs.ledger.write({"step": step, **entry._asdict()})

    # ---- checkpoints

    def _is_commit_due(self, done: int) -> bool:
        if self._is_due(done, self.run.checkpoint_every):
            return True
        if not self.run.checkpoint_minutes or done % self.run.log_every:
            return False
        minutes = (time.monotonic() - self._last_commit) / 60
        # one clock decides for all ranks
        return bool(gather_object([minutes >= self.run.checkpoint_minutes])[0])

    def _commit(self, done: int) -> None:
        """Commit a checkpoint, after all that was logged up to it is on disk."""
        self._write_ledger()
        self._logs.sync()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            temporary = checkpoint.begin(self.folder, done)
            self.training.save(temporary, {"step": done, **self.stream.constants(done)})
            checkpoint.commit(temporary, self.run.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self._last_commit = time.monotonic()
        self._speed.restart()

    def _resume(self) -> int:
        """Load the newest checkpoint, cut the logs back to it, and return its step."""
        newest = main_process_first(self.accelerator, lambda: checkpoint.newest(self.folder))
        require(
            newest is not None or self.run.resume != "must",
            f"run.resume=must, but run.dir={self.run.dir} has no whole checkpoint; "
            "use run.resume=auto to start again from step 0",
        )
        step = 0
        if newest is not None:
            step = checkpoint.read_state(newest)["step"]
            checkpoint.check_constants(newest, self.stream.constants(step))
            self.training.load(newest)
        if self.accelerator.is_main_process:
            if newest is not None:
                checkpoint.publish(newest)
                logger.info("resuming %s from step %d of %d", self.folder, step, self.optim.steps)
            cut_logs_back(self.folder, step)
        self.accelerator.wait_for_everyone()
        return step


class _Speedometer:
    """Images a second since the last record, validations and checkpoints left out."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Start counting anew."""
        self._begin = self._mark = time.perf_counter()
        self._waited = 0.0
        self._num_steps = 0

    def data_arrived(self) -> None:
        """Count the time since the last step's end as waiting for data."""
        self._waited += time.perf_counter() - self._mark

    def step_done(self) -> None:
        """Count one step."""
        self._num_steps += 1
        self._mark = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return the speed, and the fraction of the time spent waiting for data."""
        elapsed = time.perf_counter() - self._begin
        return {
            "speed/images_per_second": self._num_steps * self._batch_size / elapsed,
            "speed/data_wait_ratio": self._waited / elapsed,
        }


# ---------------------------------------------------------------- sums over batches and ranks


def to_device(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch to a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def add_sums(left: Sums, right: Sums) -> Sums:
    """Add two batches' sums; an empty left side counts as zero."""
    return {name: left[name] + value if left else value for name, value in right.items()}


def reduce(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Add a tensor over all ranks."""
    return cast(Tensor, accelerator.reduce(tensor, "sum"))


def reduce_sums(accelerator: Accelerator, sums: Sums) -> Sums:
    """Add sums over all ranks, in one transfer."""
    flat = torch.cat([value.flatten() for value in sums.values()])
    parts = reduce(accelerator, flat).cpu().split([v.numel() for v in sums.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(sums.items(), parts, strict=True)
    }


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: Any, batches: Iterable[Batch]) -> dict[str, float]:
    """Return the model's figures over all ranks' batches; the same number on any number of ranks.

    Args:
        accelerator: What `start` gave.
        model: An `Objective`, not wrapped.
        batches: This rank's part.
    """
    model.eval()
    sums: Sums = {}
    for batch in batches:
        with accelerator.autocast():
            output: Output = model(to_device(batch.tensors, accelerator.device))
        sums = add_sums(sums, output.sums)
    return model.summarise(reduce_sums(accelerator, sums))
