"""The story of a recommendation: look, time, choose, write, say."""

import shlex
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.facts import patch_size
from pretrain.training.launch import start_logging
from scripts._recommend import choosing, telling
from scripts._recommend.choosing import Plan, Recipe
from scripts._recommend.facts import Images, Labelled, Timing
from scripts._recommend.labels import look_at_labels
from scripts._recommend.looking import look
from scripts._recommend.machine import look_at_machine
from scripts._recommend.sizes import Size
from scripts._recommend.timing import time_training
from scripts._recommend.writing import load_choices, write

_MOST_SECONDS, _TIMED_SHARE = 6.0, 0.05  # of timing an encoder; of the run's time
_LABEL, _WIDTH = 10, 110  # characters


def recommend(spec: str, hours: float, labelled: str | None, init: str | None, out: Path) -> None:
    """Write a recipe for images, and say what was seen and chosen.

    Args:
        spec: The images, as `data.shards` takes them.
        hours: For the run.
        labelled: Labelled images, or None.
        init: Weights to continue from, as `encoder.init` takes them; None begins at random.
        out: The file.

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
    plan = choosing.plan(images, machine, None if init is None else _start_at(init, images))
    size, measured = choosing.choose_size(plan, hours, partial(_time, plan, hours))
    for line in telling.timing_lines(plan.sizes, measured, plan.batch):
        _say("timed", line)
    timing = measured[size.name]
    assert timing is not None
    made = _command(spec, hours, labelled, init)
    recipe = choosing.choose(plan, size, timing, hours, labels)
    write(out, _header(recipe, made, out, measured), recipe.choices)
    _tell(recipe, labels, out)


def _start_at(init: str, images: Images) -> Size:
    """Return the size of the encoder that weights are of."""
    encoder: Any = make_encoder(EncoderConfig(init=init), channels=images.channels)
    heads = encoder.blocks[0].attn.num_heads
    width, depth = encoder.embed_dim, len(encoder.blocks)
    return Size(init, init, width, depth, heads, 0, patch_size(encoder)[0])


def _time(plan: Plan, hours: float, size: Size) -> Timing | None:
    """Time an encoder's training; None where it does not fit into memory."""
    _note(f"timing {size.told}")
    config = load_choices(choosing.trial(plan, size))
    optim = replace(config.optim, batch_size=plan.batch // plan.machine.num_ranks)
    seconds = min(_MOST_SECONDS, 3600 * hours * _TIMED_SHARE)
    return time_training(replace(config, optim=optim), plan.images.decode_seconds, seconds)


def _command(spec: str, hours: float, labelled: str | None, init: str | None) -> str:
    parts = [f"python scripts/recommend.py {shlex.quote(spec)} --hours {hours:g}"]
    options = {"--labels": labelled, "--init": init}
    parts += [f"{name} {shlex.quote(value)}" for name, value in options.items() if value]
    return " ".join(parts)


def _header(recipe: Recipe, made: str, out: Path, measured: dict[str, Timing | None]) -> list[str]:
    """Return the lines of the file's head, in the form of configs/."""
    plan, machine = recipe.plan, recipe.plan.machine
    several = ""
    if machine.num_gpus > 1:
        number = machine.num_gpus
        several = f" One GPU was timed; that {number} are {number} times as fast is a guess."
    return [
        f"A recipe for {plan.images.spec}, made by {made}",
        f"command: {telling.run_command(str(out), machine)}",
        f"images:  {telling.images_line(plan.images)}",
        f"machine: {telling.machine_line(machine)}",
        *(f"timed:   {line}" for line in telling.timing_lines(plan.sizes, measured, plan.batch)),
        f"cost:    {telling.length_line(recipe)}; {telling.limit_line(recipe)}.{several}",
        *(f"watch:   {line}" for line in telling.watch()),
        f"better:  {telling.better(recipe)}",
        f"instead: {telling.instead(plan.images)}. {telling.licences()}.",
        *(f"from:    {line}" for line in telling.how_to_continue(plan.images)),
        "Behind each reason stands where it comes from.",
    ]


def _tell(recipe: Recipe, labels: Labelled | None, out: Path) -> None:
    size, grid = recipe.size, recipe.plan.grid
    height, width = grid.size
    _say(
        "chosen",
        f"{size.told}; images of {width} x {height} "
        f"pixels in {grid.num_patches} patches; three quarters are hidden, and the encoder learns "
        "to say what was there",
    )
    _say("length", f"{telling.length_line(recipe)}; {telling.limit_line(recipe)}")
    for line in telling.warnings(recipe, labels):
        _say("mind", line)
    _say("better", telling.better(recipe))
    _say("instead", f"{telling.instead(recipe.plan.images)} (how: {out})")
    for line in telling.watch():
        _say("watch", line)
    _say("next", telling.run_command(str(out), recipe.plan.machine))
    if then := telling.then(labels):
        _say("then", then)


def _say(label: str, text: str) -> None:
    wrapped = textwrap.wrap(text, _WIDTH - _LABEL, break_on_hyphens=False, break_long_words=False)
    print(f"{label:{_LABEL}}" + f"\n{'':{_LABEL}}".join(wrapped), flush=True)


def _note(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)
