"""The training loop that pretraining and fine-tuning share.

It sees a model only as `model(batch) -> Output` and `model.summarise(sums) -> figures`. Everything
random is a function of (seed, step, rank), the learning rate of the step, the batch of the
position; so the state of a run is its weights and one integer.
"""

import copy
import logging
import math
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from data.batch import Batch, LedgerEntry, SamplePlace
from data.devices import send, skips_bad_steps
from data.randomness import derive
from data.sequential.stream import SequentialStream
from data.settings import RunStopped, require
from data.stream import TrainingStream
from data.text import count
from pretrain.encoder.recompute import recompute_blocks
from pretrain.encoder.tokens import choose_attention, narrow_residual
from pretrain.machine.graphs import Graphs
from pretrain.machine.signals import Interrupt, status_after
from pretrain.ranks import first_problem, on_main, reduce
from pretrain.records import checkpoint
from pretrain.records.bad_samples import BadSamples, Unusable, name_once
from pretrain.records.logs import RunLogs, cut_logs_back, read_records
from pretrain.records.traces import SKIPPED
from pretrain.records.trackers import Trackers
from pretrain.training.batch_norm import RunningStatistics
from pretrain.training.best import Best
from pretrain.training.claim import check_found
from pretrain.training.config import Configured, OptimConfig, RunConfig
from pretrain.training.contract import Evaluator, Objective, Output
from pretrain.training.device import Copies, Late, Totals
from pretrain.training.launch import count_parameters, describe_start, start_record
from pretrain.training.optim import make_optimizer, set_lr
from pretrain.training.parallel import backward_of, cut, whole
from pretrain.training.progress import Progress, Speedometer
from pretrain.training.state import Training
from pretrain.training.utilisation import flops_per_image, measure_limit
from pretrain.training.validation import require_finite, summarise

logger = logging.getLogger(__name__)


class _Flag(NamedTuple):
    """Whether a step was bad, not read yet, and the samples that this rank had in it."""

    done: int
    is_bad: Late
    places: list[Sequence[SamplePlace]]  # a micro-batch each


class Trainer:
    """One run: from its newest checkpoint, or from the start, to its last step.

    Args:
        accelerator: What `start` gave.
        run: Where and how often.
        optim: How long and how fast.
        model: An `Objective` whose parameters are trained.
        stream: The training samples of this rank.
        evaluators: What is measured in between, and at the end.
        best: How the step that is handed on is chosen; None: it is the last.
        has_trace: Write the keys of each step's samples.
        max_bad_ratio: Stop when more of the samples than this cannot be used.
        flops: Operations of an image in a step, for the MFU; None: it is not told.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunConfig,
        optim: OptimConfig,
        model: Any,
        stream: TrainingStream | SequentialStream,
        evaluators: Sequence[Evaluator] = (),
        *,
        best: Best | None = None,
        has_trace: bool = False,
        max_bad_ratio: float = 1.0,
        flops: float | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.run = run
        self.optim = optim
        self.stream = stream
        self.evaluators = evaluators
        self.best = best
        self.done = 0  # steps
        self._copy = Copies(accelerator.device)
        self.folder = Path(run.dir)
        self.training = self._spread(model)
        self.objective: Objective = model
        self._statistics = RunningStatistics(model)
        self._interrupt = Interrupt()
        self._flags: list[_Flag] = []
        self._num_bad_steps = 0  # in a row
        self._ledger = BadSamples(self.folder)
        self._max_bad_ratio = max_bad_ratio
        self._logs = RunLogs(self.folder, accelerator.process_index, has_trace)
        self._trackers = Trackers(accelerator, self.folder)
        self._unusable: list[Unusable] = []  # of what was measured and is not judged yet
        self._last_commit = time.monotonic()
        self._flops = flops
        self._speed = Speedometer(optim.num_images)

    @classmethod
    def of(
        cls,
        accelerator: Accelerator,
        config: Configured,
        model: Any,
        stream: TrainingStream | SequentialStream,
        evaluators: Sequence[Evaluator],
        *,
        best: Best | None = None,
    ) -> Self:
        """Make the trainer of a whole configuration."""
        run, optim, data = config.run, config.optim, config.data
        num_images = run.micro_batch_size or optim.num_images // accelerator.num_processes
        flops = flops_per_image(accelerator, model, num_images)  # before the model is spread
        return cls(
            accelerator,
            run,
            optim,
            model,
            stream,
            evaluators,
            best=best,
            has_trace=data.trace,
            max_bad_ratio=data.max_bad_ratio,
            flops=flops,
        )

    def _spread(self, model: Any) -> Training:
        """Put the model on the ranks, with its optimizer."""
        accelerator, optim = self.accelerator, self.optim
        choose_attention(model, accelerator.device, accelerator.mixed_precision)
        recompute_blocks(model.encoder, self.run.grad_checkpointing)
        if self.run.bf16_residual:
            narrow_residual(model.encoder)
        is_cut = self.run.parallel == "fsdp"
        require(
            not (is_cut and optim.ema),
            f"optim.ema={optim.ema} cannot be had with run.parallel=fsdp; set one of them to its "
            "default",
        )
        ema = ModelEmaV3(model, decay=optim.ema) if optim.ema else None
        plain = copy.deepcopy(model) if is_cut and accelerator.is_main_process else None
        if self.run.compile:
            model.compile()
        if is_cut:
            cut(model, accelerator)
            self.wrapped = model
        else:
            self.wrapped = accelerator.prepare(model)
        self._graphs = Graphs(model) if self.run.cuda_graphs else None
        if ema is not None:
            ema.to(accelerator.device)
        self.optimizer = accelerator.prepare(make_optimizer(model, model.encoder, optim))
        return Training(model, self.optimizer.optimizer, ema, accelerator.scaler, plain)

    def train(self) -> dict[str, float]:
        """Train to the last step; return the last record's figures.

        Raises:
            RunStopped: A signal came, steps or data are too bad, or the last checkpoint could not
                be written. What was committed is intact.
            UserError: A tracker cannot be started.
        """
        first, last = self._resume(), self.optim.num_steps
        self.done = first
        if first == last or self._is_given_up:
            return self._measure_finished()
        self._speed.limit = measure_limit(self.accelerator, self.run.precision, self._flops)
        self._speed.restart()
        self._say_start()
        record: dict[str, float] = {}
        done = first
        is_shown = self.accelerator.process_index == 0
        self._trackers.start(first)
        with (
            self._logs,
            closing(self._trackers),
            Progress(first, last, is_shown=is_shown) as progress,
            self._interrupt,
        ):
            name_once(self._logs.ledger, first, self.stream.damage(first))
            if self._logs.starts is not None:
                limit = self._speed.limit
                self._logs.starts.write(start_record(first, self.accelerator, self.run, limit))
            for step, batches in enumerate(self.stream.steps(first, last), start=first):
                if step == first:
                    self._warm_up(batches[0])
                self._speed.data_arrived()
                totals, norm, is_asked_to_leave = self._step(step, batches)
                self.done = done = step + 1
                self._write_trace(done, batches)
                self._speed.step_done()
                self._settle(done - 1)
                is_measured = any(self._is_due(done, e.every) for e in self.evaluators)
                is_best = False
                if is_measured or self._is_due(done, self.run.log_every):
                    record = self._log(done, totals, norm)
                    progress.show(record)
                    is_best = self.best is not None and self.best.note(done, record)
                is_leaving = is_asked_to_leave.read() > 0
                is_end = done == last or self._is_given_up
                if is_leaving or is_best or is_end or self._is_commit_due(done):
                    self._commit(done, is_last=is_leaving or is_end)
                self._judge_measured(done, record)
                progress.advance()
                if is_end:
                    break
                if is_leaving:
                    self._leave(done)
        if self.best is not None and done < last:
            logger.info("ended at step %d of %d: %s", done, last, self.best.why_given_up())
        return record

    def take(self, batches: list[Batch], *, is_waited_for: bool = False) -> None:
        """Take the next step as `train` does, for its time; nothing is logged or committed.

        Args:
            batches: This rank's micro-batches.
            is_waited_for: Wait until the device is through with it, and not only with the last.
        """
        self._step(self.done, batches)
        self._settle(self.done + is_waited_for)
        self.done += 1

    @property
    def _is_given_up(self) -> bool:
        return self.best is not None and self.best.is_given_up

    def load_best(self) -> bool:
        """Load the best step's weights into an ended run; tell whether they are other ones."""
        return self.best is not None and self.best.load(self.training, self.folder, self.done)

    def _say_start(self) -> None:
        """Say in one line what is about to happen, and on what."""
        stream, steps = self.stream, self.optim.num_steps
        images = "images as they come"
        if isinstance(stream, TrainingStream):
            epochs = count(steps / stream.steps_per_epoch, "epoch", "epochs")
            images = f"{count(stream.samples.manifest.num_samples, 'image')}, {epochs}"
        limit = self._speed.limit
        logger.info(
            "start: %s; %s, %s; %s%s",
            describe_start(self.accelerator, self.run, stream.workers),
            images,
            count(steps, "step"),
            count_parameters(self.objective),
            "" if limit is None else f", {limit}",
        )

    def _warm_up(self, batch: Batch) -> None:
        """Pass forwards and backwards twice, changing nothing, where DDP adds over several ranks.

        DDP sorts its gradients into other buckets after the first backward pass. On three ranks and
        more, that changes the order of a sum: a resumed run would not be exact.
        """
        if self.accelerator.num_processes < 3 or self.run.parallel == "fsdp":
            return
        self.wrapped.train()
        self._statistics.hold()
        for _ in range(2):
            self.accelerator.backward(self._forward(batch).loss)
        self._statistics.restore()
        self.optimizer.zero_grad()

    def _forward(self, batch: Batch) -> Output:
        with self.accelerator.autocast():
            return (self._graphs or self.wrapped)(self._copy(batch.tensors))

    def _step(self, step: int, batches: list[Batch]) -> tuple[Totals, Tensor, Late]:
        """Take one optimizer step over this rank's micro-batches.

        Returns:
            This rank's sums, the gradient's norm, and how many ranks were asked to leave.
        """
        accelerator = self.accelerator
        self._interrupt.has_begun = True
        weight = sum((batch.tensors["weight"].sum() for batch in batches), torch.zeros(()))
        is_asked = torch.tensor(float(self._interrupt.name is not None))
        # one transfer; on the device the two stay apart from what the host waits for
        about = send(torch.stack([weight, is_asked]), accelerator.device)
        total, num_asked = reduce(accelerator, about).unbind()
        is_asked_to_leave = Late(num_asked)
        # the loss is divided by the global weight; DDP averages over ranks, hence the factor
        scale = accelerator.num_processes / total.clamp(min=1)
        set_lr(self.optimizer, self.optim.lr_at(step))
        self.wrapped.train()
        self._statistics.hold()
        totals = Totals()
        is_finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
        for number, batch in enumerate(batches):
            _seed_generators(derive(self.run.seed, step, number, accelerator.process_index))
            with backward_of(accelerator, self.wrapped, is_last=number == len(batches) - 1):
                output = self._forward(batch)
                # an infinite loss can have a finite gradient: make it one that all ranks see
                is_finite_here = output.loss.detach().isfinite()
                # not `where`: it would bring the number to the device, and wait
                accelerator.backward(output.loss * scale.masked_fill(~is_finite_here, math.nan))
            is_finite &= is_finite_here
            if self._graphs is not None and number < len(batches) - 1:
                self._graphs.own_gradients()
            totals.add(output.sums)
            self._ledger.note(step + 1, batch.bad)
        limit = self.optim.grad_clip or math.inf
        norm = whole(cast(Tensor, accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)))
        self._statistics.settle(accelerator, norm)
        places = [batch.places for batch in batches]
        is_bad = self._skip_if_bad(norm, is_finite)
        self._flags.append(_Flag(step + 1, is_bad, places))
        if skips_bad_steps(accelerator.device) or is_bad.read() == 0:
            self.optimizer.step()
        self.optimizer.zero_grad(not (self._graphs and self._graphs.has_own_gradients))
        if self.training.ema is not None:
            self.training.ema.update(self.training.model)
        return totals, norm, is_asked_to_leave

    # ---- what is bad

    def _skip_if_bad(self, norm: Tensor, is_finite: Tensor) -> Late:
        """Tell the optimizer, on the device, to skip a bad step; the same on all ranks.

        With fp16 the scaler tells it, and for gradients out of range too: those skips are its own
        business, and only a loss that is not finite is ours.
        """
        if self.accelerator.scaler is not None:
            num_bad = reduce(self.accelerator, (~is_finite).float())
            return Late(num_bad)
        is_bad = (~norm.isfinite()).float()
        optimizer: Any = self.training.optimizer
        optimizer.found_inf = is_bad
        return Late(is_bad)

    def _settle(self, done: int) -> None:
        """Read which steps up to `done` were bad, name their samples, and stop after too many."""
        while self._flags and self._flags[0].done <= done:
            flag = self._flags.pop(0)
            if flag.is_bad.read() == 0:
                self._num_bad_steps = 0
                continue
            self._num_bad_steps += 1
            skipped = [LedgerEntry(*place, SKIPPED) for places in flag.places for place in places]
            self._ledger.note(flag.done, skipped)
            if self._num_bad_steps == self.run.max_bad_steps:
                self._ledger.write(self._logs.ledger)
                raise RunStopped(
                    f"the loss or its gradient was not finite in {self._num_bad_steps} steps in a "
                    f"row (run.max_bad_steps), up to step {flag.done}; {self._what_is_kept()}; try "
                    "a lower optim.lr, a longer optim.warmup_steps, or run.precision=fp32",
                    is_agreed=True,
                )

    def _what_is_kept(self) -> str:
        newest = checkpoint.newest_by_name(self.folder)
        return f"{newest} is intact" if newest else "there is no checkpoint yet"

    # ---- writing down

    def _is_due(self, done: int, every: int) -> bool:
        return done == self.optim.num_steps or (every > 0 and done % every == 0)

    def _log(self, done: int, totals: Totals, norm: Tensor) -> dict[str, float]:
        """Write a step's record; the step's own values over all ranks, in full precision."""
        self._settle(done)
        summary = summarise(self.accelerator, self.objective, totals)
        own = {f"train/{name}": value for name, value in summary.items()}
        record: dict[str, float] = {
            "step": done,
            "epoch": done / self.stream.steps_per_epoch,
            **own,
            "optim/lr": self.optim.lr_at(done - 1),
            "optim/grad_norm": float(norm),
            **self._speed.read(),
        }
        images: dict[str, Tensor] = {}
        for evaluator in self.evaluators:
            if self._is_due(done, evaluator.every):
                measured = evaluator.measure(self.training.best)
                figures = measured.figures.items()
                record |= {f"{evaluator.name}/{name}": value for name, value in figures}
                self._unusable += measured.unusable
                if evaluator.illustrate is not None:
                    images |= evaluator.illustrate(self.training.best)
        if self._logs.metrics is not None:
            self._logs.metrics.write(record)
        self._trackers.log(record, images)
        self._ledger.write(self._logs.ledger)  # first, so that the file stays in order
        for split in self._unusable:
            name_once(self._logs.ledger, done, split.entries, split.split)
        self._judge(done)
        if done == self.optim.num_steps and self._num_bad_steps >= min(2, done):
            # before the last commit: it has diverged; a last step that alone is bad was skipped
            self._require_result(own)
        self._speed.restart()
        return record

    def _judge(self, done: int) -> None:
        """Stop if too much could not be used up to a step; the ledger is written."""
        seen, epoch, run = map(
            self.stream.consumed, (done, self.stream.steps_per_epoch, self.optim.num_steps)
        )
        self._ledger.judge(seen, epoch, run, self._max_bad_ratio)

    def _judge_measured(self, done: int, record: dict[str, float]) -> None:
        """Stop where what was measured is of too few samples, or the run ends with no number.

        After a commit, so that no step is lost; a finished run is judged again when it is started.
        """
        unusable, self._unusable = self._unusable, []
        for split in unusable:
            split.judge(self._max_bad_ratio, self.folder)
        if done == self.optim.num_steps:
            names = {evaluator.name for evaluator in self.evaluators}
            figures = {key: value for key, value in record.items() if key.split("/")[0] in names}
            self._require_result(figures)

    def _require_result(self, figures: dict[str, float]) -> None:
        require_finite(figures, "the last step's result", f"; {self._what_is_kept()}")

    def _measure_finished(self) -> dict[str, float]:
        """Measure a run that was finished before by what it is asked for now, and say it."""
        self.load_best()
        record: dict[str, float] = {}
        for evaluator in self.evaluators:
            measured = evaluator.measure(self.training.best)
            for split in measured.unusable:
                split.judge(self._max_bad_ratio, self.folder)
            figures = measured.figures.items()
            record |= {f"{evaluator.name}/{name}": value for name, value in figures}
        self._require_result(record)
        lines = "".join(f"\n  {name} {value:.6g}" for name, value in record.items())
        what = (
            f"measured now, and not in metrics.jsonl:{lines}" if lines else "nothing is left to do"
        )
        if self.best is not None and self.done < self.optim.num_steps:
            what = f"{self.best.why_given_up()}; {what}"
        logger.info("%s was finished before, at step %d; %s", self.folder, self.done, what)
        return record

    def _write_trace(self, done: int, batches: list[Batch]) -> None:
        if self._logs.trace is None:
            return
        epoch = self.stream.epoch(done - 1)
        names = [place.name for batch in batches for place in batch.places]
        self._logs.trace.write({"step": done, "epoch": epoch, "keys": names})

    # ---- checkpoints

    def _is_commit_due(self, done: int) -> bool:
        if self._is_due(done, self.run.checkpoint_every):
            return True
        if not self.run.checkpoint_minutes or done % self.run.log_every:
            return False
        minutes = (time.monotonic() - self._last_commit) / 60
        # one clock decides for all ranks
        return bool(gather_object([minutes >= self.run.checkpoint_minutes])[0])

    def _commit(self, done: int, *, is_last: bool) -> None:
        """Commit a checkpoint, after all that was logged up to it is on disk.

        Where one rank cannot write, none commits: the checkpoint before stays the newest.
        """
        self._settle(done)
        self._ledger.write(self._logs.ledger)
        self._judge(done)
        problem = first_problem(self._logs.sync)
        if problem is None:
            tensors = self.training.collect()
            problem = first_problem(lambda: self._save(done, tensors))
        if problem is not None:
            what = f"no checkpoint at step {done}: {problem}; {self._what_is_kept()}"
            if is_last:
                text = f"{what}; then the same command goes on from it"
                raise RunStopped(text, is_agreed=True)
            logger.warning("%s; trying again at the next one", what)
            if self.best is not None:
                self.best.not_committed(done)
        else:
            self._trackers.commit()
        self._last_commit = time.monotonic()
        self._speed.restart()

    def _save(self, done: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {"step": done, "num_bad": self._ledger.num_bad, **self.stream.constants(done)}
        if self.best is not None:
            state["best"] = self.best.state()
        with checkpoint.writing(self.folder, done) as temporary:
            self.training.save(temporary, state, tensors)
            checkpoint.commit(temporary, self.run.keep_checkpoints)

    def _leave(self, done: int) -> NoReturn:
        names: list[str | None] = gather_object([self._interrupt.name])
        name, status = status_after(names, self.run.requeue_status)
        self._interrupt.name = name
        raise RunStopped(
            f"{name} came; step {done} is committed, and the same command resumes from it",
            status=status,
            is_agreed=True,
        )

    def _resume(self) -> int:
        """Load the newest checkpoint, cut the logs back to it, and return its step."""
        newest = on_main(self.accelerator, lambda: checkpoint.recover_newest(self.folder))
        check_found(self.run, newest)
        step = 0
        if newest is not None:
            state = checkpoint.read_state(newest)
            step, self._ledger.num_bad = state["step"], state.get("num_bad", 0)
            stream = self.stream
            constants, former = stream.constants(step), stream.former_constants
            changes = stream.changes(self.folder)
            checkpoint.check_constants(newest, state, constants, former, changes)
            self.training.load(newest, state)
            if self.best is not None:
                self.best.resume(self.accelerator, newest, state)
        if self.accelerator.is_main_process:
            if newest is None:
                self._say_that_it_begins_again()
            else:
                checkpoint.publish(newest)
                logger.info(
                    "resuming %s from step %d of %d", self.folder, step, self.optim.num_steps
                )
            cut_logs_back(self.folder, step)
            self.stream.record(self.folder)
        self.accelerator.wait_for_everyone()
        return step

    def _say_that_it_begins_again(self) -> None:
        log = self.folder / "metrics.jsonl"
        records = read_records(log) if log.exists() else []
        if records:
            logger.warning(
                "%s has a log up to step %d, but no whole checkpoint: the run begins again from "
                "step 0 (run.checkpoint_every, run.checkpoint_minutes)",
                self.folder,
                records[-1]["step"],
            )


def _seed_generators(seed: int) -> None:
    """Seed the global generators: torch's for drop-path and dropout, NumPy's for timm's mixup."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - what timm draws from
