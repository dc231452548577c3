"""Speed, share of the matrix peak, and memory on one GPU, within a given time.

Each row has a process of its own. The steps of one encoder take turns, so that their ratios are
made within a round. What fails, or has no answer in its time, is named with its reason, and the
others go on.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

import torch

from data.settings import UserError, require
from data.text import count
from pretrain.machine.apart import Apart, in_fresh_process
from scripts._benchmark.gpu import forms, rows
from scripts._benchmark.gpu.attention import Attention
from scripts._benchmark.gpu.budget import Budget
from scripts._benchmark.gpu.forms import Form
from scripts._benchmark.gpu.found import Found
from scripts._benchmark.gpu.markdown import markdown
from scripts._benchmark.installed import TRANSFORMERS
from scripts._benchmark.loading.sources import Images
from scripts._benchmark.options import GpuOptions, Measured, RunOptions
from scripts._benchmark.photographs import (
    NUM_IMAGES,
    make_photograph_shard,
    make_small_shard,
)
from scripts._benchmark.training.costs import MatrixPeak

Result = TypeVar("Result")
Part = Callable[[Found, float], None]  # adds to what was found, until then by `time.monotonic`

_WEIGHTS = {"L/16": 2.5, "run": 2.0, "small": 1.5, "attention": 0.3, "loader": 1.0}  # of the time
_OTHERS = 1.5  # the weight of the steps of another encoder
_SHORTER = 5  # times, a turn of one layer's attention
_SLACK = 10.0  # seconds left to ending processes and writing
_PRODUCT = "the matrix product"
_WARM, _TURNS = 0.6, 0.85  # of an encoder's time are over when all is compiled, and measured


def measure(options: GpuOptions, folder: Path) -> Measured:
    """Measure all parts, or those that are asked for, in turn.

    Returns:
        The record and a table in Markdown. `missing` names the rows without figures, with their
        reasons; `num_failed` counts those that should have had some.

    Raises:
        UserError: A part is unknown.
    """
    begun = monotonic()
    is_short = options.short or not torch.cuda.is_available()
    form = (forms.short if is_short else forms.whole)(folder)
    parts = _chosen(_parts(form, folder), options.parts)
    weights = [_WEIGHTS.get(name, _OTHERS) for name in parts]
    budget = Budget(max(0.0, 60 * options.minutes - _SLACK), weights)
    found = Found()
    for part in parts.values():
        part(found, budget.next_end())
    subjects = {name: asdict(subject) for name, subject in form.subjects.items()}
    about = {"short": is_short, "subjects": subjects, "workers": form.workers}
    record = found.record(asdict(options) | about)
    record["seconds"] = monotonic() - begun
    return record, markdown(record)


def _chosen(parts: dict[str, Part], names: str | None) -> dict[str, Part]:
    chosen = list(parts) if names is None else names.split(",")
    for name in chosen:
        require(name in parts, f"--parts={names}: {name!r} is none of {', '.join(parts)}")
    return {name: part for name, part in parts.items() if name in chosen}


def _parts(form: Form, folder: Path) -> dict[str, Part]:
    """Return the parts, the most important first."""
    parts: dict[str, Part] = {name: partial(_measure_steps, form, name) for name in form.subjects}
    parts["run"] = partial(_measure_runs, form, folder)
    parts["small"] = partial(_measure_small, form, folder)
    parts["attention"] = partial(_measure_attention, form)
    parts["loader"] = partial(_measure_loader, form, folder)
    return parts


# ---------------------------------------------------------------- steps


def _measure_steps(form: Form, part: str, found: Found, end: float) -> None:
    """Measure the steps of one encoder, in turns; all are compiled at the same time."""
    subject = form.subjects[part]
    names = rows.steps_of(subject)
    if not TRANSFORMERS.is_installed:
        names.remove(rows.MAE)
        found.leave_out(f"{rows.MAE} {part}", TRANSFORMERS.complaint)
    begin = monotonic()
    warm_end, turns_end = (begin + share * (end - begin) for share in (_WARM, _TURNS))
    with ExitStack() as running:
        steps = {
            f"{name} {part}": running.enter_context(
                Apart(f"{name} {part}", rows.Step, name, subject)
            )
            for name in names
        }
        matrices = running.enter_context(Apart(_PRODUCT, MatrixPeak, subject, form.seconds))
        with ThreadPoolExecutor(len(steps)) as threads:
            warmed = {
                row: threads.submit(step.call, rows.Step.warm_up, end=warm_end)
                for row, step in steps.items()
            }
        for row, done in warmed.items():
            if _tried(found, row, done.result) is None:
                steps.pop(row)
        products = list(_take_turns(form, found, steps, matrices, turns_end))
        costs: dict[str, rows.Cost] = {}
        for row, step in steps.items():
            cost = _tried(found, f"{row}, its costs", partial(step.call, rows.Step.cost, end=end))
            if cost is not None:
                costs[row] = cost
    found.add_costs(part, costs, products)


def _take_turns(
    form: Form,
    found: Found,
    steps: dict[str, Apart[rows.Step]],
    matrices: Apart[MatrixPeak],
    end: float,
) -> Iterator[float]:
    """Yield the matrix peak of each round, after a turn of each step; those that fail are dropped.

    There is one round, and another as long as there is time for it.
    """
    begin = monotonic()
    for done in range(form.rounds):
        if done and monotonic() + (monotonic() - begin) / done > end:
            return
        product = _tried(found, _PRODUCT, partial(matrices.call, MatrixPeak.measure, end=end))
        for row, step in list(steps.items()):
            turn = partial(step.call, rows.Step.take_turn, form.seconds, end=end)
            speed = _tried(found, row, turn)
            if speed is None:
                steps.pop(row)
            else:
                found.speeds.add(row, speed)
        if product is not None:
            yield product


def _tried(found: Found, row: str, work: Callable[[], Result]) -> Result | None:
    """Return what some work returns; None where it fails, which is noted."""
    try:
        return work()
    except Exception as error:  # whatever it is: the others go on
        found.fail(row, error)
        return None


def _measure_attention(form: Form, found: Found, end: float) -> None:
    """Measure one layer's attention by each kernel: over all tokens, and over a quarter of them."""
    subject = form.subjects[form.of_run]
    num_patches = (subject.side // subject.sizes["patch_size"]) ** 2
    turns = {
        f"attention by {kernel}, {tokens} tokens": (kernel, tokens, form.seconds / _SHORTER)
        for tokens in (num_patches + 1, num_patches // 4 + 1)
        for kernel in form.kernels
    }
    with Apart("attention", Attention, subject) as attention:
        for _ in range(form.rounds):
            for row, arguments in list(turns.items()):
                turn = partial(attention.call, Attention.take_turn, *arguments, end=end)
                speed = _tried(found, row, turn)
                if speed is None:
                    turns.pop(row)
                else:
                    found.speeds.add(row, speed)


# ---------------------------------------------------------------- runs, and the loader


def _measure_runs(form: Form, folder: Path, found: Found, end: float) -> None:
    """Measure a run from a shard of photographs over its own bare step, by each objective."""
    names = [f"{name} {form.of_run} run" for name in form.objectives]
    shard = _made(found, names, partial(make_photograph_shard, folder))
    if shard is None:
        return
    options = rows.run_options(form, form.subjects[form.of_run], [shard])
    budget = Budget(end - monotonic(), [1.0] * len(names))
    for row, name in zip(names, form.objectives, strict=True):
        _measure_run(row, options, folder / row, found, budget.next_end(), name == "words", False)


def _measure_small(form: Form, folder: Path, found: Found, end: float) -> None:
    """Measure a run on small images by words, from shards and from memory."""
    kinds = {"words small run": False, "words small run, data.resident=true": True}
    shard = _made(found, list(kinds), partial(make_small_shard, folder, form.num_small))
    if shard is None:
        return
    options = rows.run_options(form, form.small, [shard])
    budget = Budget(end - monotonic(), [1.0] * len(kinds))
    for row, is_resident in kinds.items():
        _measure_run(row, options, folder / row, found, budget.next_end(), True, is_resident)


def _measure_run(
    row: str,
    options: RunOptions,
    folder: Path,
    found: Found,
    end: float,
    has_words: bool,
    is_resident: bool,
) -> None:
    arguments = options, folder, has_words, is_resident
    record = _tried(found, row, partial(in_fresh_process, rows.measure_one, *arguments, end=end))
    if record is not None:
        found.add_run(row, record)


def _measure_loader(form: Form, folder: Path, found: Found, end: float) -> None:
    """Measure the loader alone, by its number of processes."""
    names = {f"loader, {count(number, 'process', 'processes')}": number for number in form.loaders}
    shard = _made(found, list(names), partial(make_photograph_shard, folder))
    if shard is None:
        return
    subject = form.subjects[form.of_run]
    images = Images([shard], NUM_IMAGES, subject.side, subject.batch_size, str(folder))
    budget = Budget(end - monotonic(), [1.0] * len(names))
    for row, number in names.items():
        end = budget.next_end()
        with Apart(row, rows.Loader, images, number) as loader:
            for _ in range(form.rounds):
                turn = partial(loader.call, rows.Loader.take_turn, form.seconds, end=end)
                speed = _tried(found, row, turn)
                if speed is None:
                    break
                found.speeds.add(row, speed)


def _made(found: Found, names: list[str], make: Callable[[], str]) -> str | None:
    """Return the shard that some rows read; where it cannot be made, they are left out."""
    try:
        return make()
    except UserError as error:
        for row in names:
            found.leave_out(row, str(error))
        return None
