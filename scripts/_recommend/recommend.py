"""The story of a recommendation: look, time, choose, write, say."""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.facts import patch_size
from pretrain.training.launch import start_logging
from scripts._recommend import telling
from scripts._recommend.choosing import Recipe, choose_size, fit
from scripts._recommend.facts import Images, Labelled, Timing
from scripts._recommend.labels import look_at_labels
from scripts._recommend.looking import look
from scripts._recommend.machine import look_at_machine
from scripts._recommend.plan import Plan, make_plan
from scripts._recommend.sizes import Size
from scripts._recommend.timing import time_training
from scripts._recommend.values import choices, trial
from scripts._recommend.writing import load_choices, write

_MOST_SECONDS, _TIMED_SHARE = 6.0, 0.05  # of timing an encoder; of the run's time
_LABEL, _WIDTH = 10, 110  # characters


def recommend(
    spec: str, hours: float, labelled: str | None, init: str | None, out: Path, importing: float
) -> None:
    """Write a recipe for images, and say what was seen and chosen.

    Args:
        spec: The images, as `data.shards` takes them.
        hours: For the run.
        labelled: Labelled images, or None.
        init: Weights to continue from, as `encoder.init` takes them; None begins at random.
        out: The file.
        importing: Seconds that a run takes to import what it needs.

    Raises:
        RunStopped: The images cannot be read.
        UserError: They cannot be used, or the hours or the memory do not suffice.
    """
    start_logging(is_main_process=True)
    _note(f"looking at {spec}")
    images = look(spec)
    labels = None if labelled is None else look_at_labels(labelled)
    machine = look_at_machine()
    _say("images", telling.images_line(images))
    if labels is not None:
        _say("labels", telling.labels_line(labels))
    _say("machine", telling.machine_line(machine))
    probed = None if labels is None or labels.train is None else labels
    plan = make_plan(images, machine, probed, None if init is None else _start_at(init, images))
    size, measured = choose_size(plan, hours, partial(_time, plan, hours, importing))
    for line in telling.timing_lines(plan.sizes, measured, plan.batch):
        _say("timed", line)
    timing = measured[size.name]
    assert timing is not None
    recipe = fit(plan, size, timing, hours)
    made = telling.recommend_command(spec, hours=f"{hours:g}", labels=labelled, init=init)
    write(out, _header(recipe, made, out, measured), choices(recipe))
    for label, line in _told(recipe, labels, out):
        _say(label, line)


def _start_at(init: str, images: Images) -> Size:
    """Return the size of the encoder that weights are of.

    Raises:
        UserError: They cannot be loaded.
    """
    try:
        encoder: Any = make_encoder(EncoderConfig(init=init), channels=images.channels)
    except UserError as error:  # it names the key of a run
        raise UserError(str(error).replace("encoder.init=", "--init=")) from error
    heads = encoder.blocks[0].attn.num_heads
    width, depth = encoder.embed_dim, len(encoder.blocks)
    return Size(init, init, width, depth, heads, 0, patch_size(encoder)[0])


def _time(plan: Plan, hours: float, importing: float, size: Size) -> Timing | None:
    """Time an encoder's training; None where it does not fit into memory."""
    _note(f"timing {size.told}")
    config = load_choices(trial(plan, size))
    config = replace(config, optim=replace(config.optim, batch_size=plan.share))
    seconds = min(_MOST_SECONDS, 3600 * hours * _TIMED_SHARE)
    timing = time_training(config, plan.images.decode_seconds, seconds)
    return timing and replace(timing, start_seconds=timing.start_seconds + importing)


def _header(recipe: Recipe, made: str, out: Path, measured: dict[str, Timing | None]) -> list[str]:
    """Return the lines of the file's head, in the form of configs/."""
    plan, machine, images = recipe.plan, recipe.plan.machine, recipe.plan.images
    number = machine.num_gpus
    guess = f". One GPU was timed; that {number} are {number} times as fast is a guess"
    weights = telling.recommend_command(images.spec, init="vit_small_patch14_dinov2.lvd142m")
    return [
        f"A recipe for {images.spec}, made by {made}",
        f"command: {telling.run_command(str(out), machine)}",
        f"images:  {telling.images_line(images)}",
        f"machine: {telling.machine_line(machine)}",
        *(f"timed:   {line}" for line in telling.timing_lines(plan.sizes, measured, plan.batch)),
        f"cost:    {telling.length_line(recipe)}{guess if number > 1 else ''}.",
        *(f"watch:   {line}" for line in telling.watch(plan)),
        f"better:  {telling.better(recipe)}",
        f"instead: {telling.instead(images)}.",
        *([f"         {telling.LICENCES}.", f"from:    {weights}"] if images.is_colour else []),
        "Behind each reason stands where it comes from.",
    ]


def _told(recipe: Recipe, labels: Labelled | None, out: Path) -> Iterator[tuple[str, str]]:
    """Yield what is said of the choice, each line with its label."""
    yield "chosen", telling.chosen_line(recipe)
    yield "length", telling.length_line(recipe)
    yield from (("mind", line) for line in telling.warnings(recipe, labels))
    yield "better", telling.better(recipe)
    how = f" (how: {out})" if recipe.plan.images.is_colour else ""
    yield "instead", f"{telling.instead(recipe.plan.images)}{how}"
    yield from (("watch", line) for line in telling.watch(recipe.plan))
    yield "next", telling.run_command(str(out), recipe.plan.machine)
    if then := telling.then(labels):
        yield "then", then


def _say(label: str, text: str) -> None:
    wrapped = textwrap.wrap(text, _WIDTH - _LABEL, break_on_hyphens=False, break_long_words=False)
    print(f"{label:{_LABEL}}" + f"\n{'':{_LABEL}}".join(wrapped), flush=True)


def _note(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)
