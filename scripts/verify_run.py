"""Say whether a run was trained on each sample exactly once, and name what was not.

    python scripts/verify_run.py RUN [--shards SHARDS ...] [--json PATH]

RUN is the folder of a pretraining or fine-tuning run with data.trace=true, finished or not; nothing
in it is changed. Its traces and bad_samples.jsonl are held against its shards and their order, step
by step up to the newest whole checkpoint; what was logged past it is left out, as a resume cuts it
off. --shards says where the shards are now, if they were moved. For a run whose config.yaml names
them by relative paths, start the script from the folder in which the run was started.

Status 0: it holds. 1: it does not. 2: it cannot be said.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.captions.config import CaptionedDataConfig, CaptionedLabelledDataConfig
from data.config import DataConfig, LabelledDataConfig
from data.disks import explain
from data.index.open import open_manifest
from data.processes import importing
from data.settings import (
    OneLineParser,
    UserError,
    require,
    require_utf8,
    run_entry_point,
    setting,
)
from data.shards import atomic_write
from data.storage.locations import user_path
from data.text import count
from finetune.tuning.config import TunedRunConfig
from pretrain.configuration.load import load
from pretrain.records.checkpoint import newest_intact
from pretrain.records.kinds import Kind, kind_of_run
from pretrain.records.traces import trace_files
from pretrain.training.config import OptimConfig, RunConfig

if TYPE_CHECKING:
    from pretrain.records.verify import EpochCounts, Verdict

_NUM_SHOWN = 20  # violations, and epochs


@dataclass(frozen=True)
class _Pretraining:
    """The keys that decide a run's order of samples, whatever its objective."""

    run: RunConfig = setting(RunConfig, "the seed")
    data: DataConfig = setting(DataConfig, "the images")
    optim: OptimConfig = setting(OptimConfig, "the batch size")


@dataclass(frozen=True)
class _ImageText:
    """The same of images with captions."""

    run: RunConfig = setting(RunConfig, "the seed")
    data: CaptionedDataConfig = setting(CaptionedDataConfig, "the images and their captions")
    optim: OptimConfig = setting(OptimConfig, "the batch size")


@dataclass(frozen=True)
class _FineTuning:
    """The same of fine-tuning."""

    run: TunedRunConfig = setting(TunedRunConfig, "the seed")
    data: LabelledDataConfig = setting(LabelledDataConfig, "the labelled images")
    optim: OptimConfig = setting(OptimConfig, "the batch size")


@dataclass(frozen=True)
class _ImageTextTuning:
    """The same of fine-tuning on images with sentences."""

    run: TunedRunConfig = setting(TunedRunConfig, "the seed")
    data: CaptionedLabelledDataConfig = setting(CaptionedLabelledDataConfig, "images, sentences")
    optim: OptimConfig = setting(OptimConfig, "the batch size")


_CONFIGS: dict[Kind | None, Any] = {
    Kind.FINE_TUNING: _FineTuning,
    Kind.IMAGE_TEXT: _ImageText,
    Kind.IMAGE_TEXT_TUNING: _ImageTextTuning,
}


def main(arguments: list[str]) -> None:
    """Run `python scripts/verify_run.py ARGUMENTS`; leave with status 1 where it does not hold."""
    require_utf8(arguments)
    options = _parse(arguments)
    verdict = _verify(options.run, options.shards)
    for line in _lines(verdict):
        print(line)
    if options.json is not None:
        _write(options.json, options.run, verdict)
    if not verdict.holds:
        sys.exit(1)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=user_path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--shards", nargs="+", metavar="SHARDS", help="where they are now; as for data.shards"
    )
    parser.add_argument(
        "--json", type=user_path, metavar="PATH", help="file for all that was found"
    )
    return parser.parse_args(arguments)


def _verify(run: Path, shards: list[str] | None) -> "Verdict":
    path = run / "config.yaml"
    require(path.is_file(), f"RUN={run} has no config.yaml; name the folder of a run")
    config = load(_CONFIGS.get(kind_of_run(run), _Pretraining), [str(path)], is_part=True)
    data, key = config.data, "shards" if hasattr(config.data, "shards") else "train"
    require(
        getattr(data, "read", "random") != "sequential",
        f"RUN={run} has data.read=sequential, where samples may repeat or be missed; only "
        "data.read=random promises each once",
    )
    require(
        len(trace_files(run)) > 0,
        f"RUN={run} has no trace of its samples; give data.trace=true when it is started",
    )
    newest = newest_intact(run)
    if newest is None:
        raise UserError(f"RUN={run} has no whole checkpoint, so none of its steps is committed yet")
    spec, where = (shards, "--shards") if shards else (getattr(data, key), f"data.{key}")
    try:
        manifest = open_manifest(spec, where, data.storage, data.fraction, run, data.val_ratio)
    except UserError as error:
        hint = "" if shards else f" (--shards says where those of {path} are now)"
        raise UserError(f"{error}{hint}") from error
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from pretrain.records.verify import verify

    return verify(run, newest, manifest, config.run.seed, config.optim.num_images)


# ---------------------------------------------------------------- saying it


def _lines(verdict: "Verdict") -> list[str]:
    shown = verdict.epochs[-_NUM_SHOWN:]
    lines = [_describe(epoch) for epoch in shown]
    if len(shown) < len(verdict.epochs):
        lines.insert(0, f"the last {_NUM_SHOWN} of {len(verdict.epochs)} epochs:")
    if verdict.not_committed:
        lines.append(
            f"not committed: {count(verdict.not_committed, 'step')} past step {verdict.step}"
        )
    if not verdict.holds:
        # what is wrong with steps first: it says why samples are missing
        ordered = sorted(
            verdict.violations, key=lambda violation: violation.kind in ("missing", "twice")
        )
        messages = [violation.message for violation in ordered]
        rest = len(messages) - _NUM_SHOWN
        lines.append(f"not exactly once: {len(messages)} violations up to step {verdict.step}")
        lines += [f"  {message}" for message in messages[:_NUM_SHOWN]]
        lines += [f"  and {rest} more; --json names all"] if rest > 0 else []
        return lines
    sums = {
        name: sum(getattr(epoch, name) for epoch in verdict.epochs)
        for name in ("trained_once", "bad", "skipped")
    }
    num_finished = sum(epoch.is_finished for epoch in verdict.epochs)
    finished = count(num_finished, "epoch", "epochs")
    part = " and a part of the next" if num_finished < len(verdict.epochs) else ""
    lines.append(
        f"exactly once: {finished}{part}, {sums['trained_once']:,} samples "
        f"in {count(verdict.step, 'step')}; {sums['bad']:,} named as bad, "
        f"{sums['skipped']:,} in skipped steps"
    )
    return lines


def _describe(epoch: "EpochCounts") -> str:
    state = "" if epoch.is_finished else " (unfinished)"
    return (
        f"epoch {epoch.epoch}{state}: expected {epoch.expected:,}, once {epoch.trained_once:,}, "
        f"bad {epoch.bad:,}, skipped {epoch.skipped:,}, missing {epoch.missing:,}, "
        f"twice {epoch.twice:,}"
    )


def _write(path: Path, run: Path, verdict: "Verdict") -> None:
    record = {"run": str(run), "holds": verdict.holds, **asdict(verdict)}
    try:
        with atomic_write(path) as file:
            file.write(json.dumps(record, indent=1, ensure_ascii=True).encode() + b"\n")
    except OSError as error:
        raise UserError(f"--json={path} cannot be written: {explain(error)}") from error


if __name__ == "__main__":
    run_entry_point(main)
