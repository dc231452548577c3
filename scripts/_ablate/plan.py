"""The plan of an ablation: its YAML (configs/ablate/), read and checked before anything runs."""

import difflib
import importlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from data.processes import importing
from data.settings import UserError, require
from pretrain.configuration.layers import read_yaml
from pretrain.configuration.load import load

ROOT = Path(__file__).resolve().parents[2]
_KEYS = ("script", "config", "common", "budget", "seeds", "show", "paper", "measures", "rows")
_SHOWN = ("val/loss", "val/accuracy", "val/accuracy_mask", "val/accuracy_neighbour")
_UNTRAINED = {"optim.steps": 1, "optim.warmup_steps": 0, "optim.lr": 0.0}
_ALIKE = "which the ablation sets alike in all rows; use common or seeds"
_Values = dict[str, Any]  # dotted key -> value, as YAML gives it or as it was typed


class Script(NamedTuple):
    """An entry point that pretrains or measures.

    Attributes:
        command: Its path in the checkout, and the subcommand if it has any.
        reader: `module:name` of its configuration's class, or of the function that loads it. It is
            imported when a plan names it: other projects' objectives stay out of the rest.
        folder: The key of the folder that it writes to.
        features: The key of the folder of its features, if it reads any.
    """

    command: str
    reader: str
    folder: str = "run.dir"
    features: str | None = None


PRETRAININGS = {
    "pretrain": Script("pretrain/run.py", "pretrain.config:PretrainConfig"),
    "alternative": Script(
        "scripts/benchmark.py pretrain", "scripts._benchmark.alternatives.config:load_alternative"
    ),
    "vilt": Script("pretrain/vilt/run.py", "pretrain.vilt.config:ViltConfig"),
}
MEASURES = {
    "fewshot": Script(
        "finetune/fewshot.py", "finetune.config:FewshotConfig", "fewshot.dir", "fewshot.features"
    ),
    "probe": Script(
        "finetune/probe.py", "finetune.frozen.config:LinearConfig", "probe.dir", "probe.features"
    ),
    "finetune": Script("finetune/run.py", "finetune.config:FinetuneConfig"),
    "classify": Script("finetune/vilt/classify.py", "finetune.vilt.config:ViltFinetuneConfig"),
}


@dataclass(frozen=True)
class Command:
    """An entry point and what it is given.

    Attributes:
        name: Of the row or the measure, and of its folder.
        script: The entry point.
        config: A YAML file, or None.
        overrides: On it.
    """

    name: str
    script: Script
    config: str | None
    overrides: _Values

    @property
    def arguments(self) -> list[str]:
        """The arguments after the script's name."""
        files = [] if self.config is None else [find_config(self.config)]
        return files + arguments_of(self.overrides)

    def load(self) -> Any:
        """Return the configuration, as the script would load it."""
        return _load(self.script.reader, tuple(self.arguments))


@dataclass(frozen=True)
class Measure(Command):
    """A measurement of the encoders; without figures to show, all accuracies are shown."""

    show: tuple[str, ...]


@dataclass(frozen=True)
class Row(Command):
    """A line of the table: a pretraining, and a published value beside it."""

    is_untrained: bool
    paper: float | None


class Plan(NamedTuple):
    """An ablation.

    Attributes:
        name: Its YAML's.
        rows: By name.
        measures: Of each row's encoder.
        minutes: Of each row's training; None: all take equal steps.
        seeds: Of each row.
        show: Figures of the pretraining in table.md.
        paper: Where the rows' published values come from.
    """

    name: str
    rows: dict[str, Row]
    measures: list[Measure]
    minutes: float | None
    seeds: tuple[int, ...]
    show: tuple[str, ...]
    paper: str


@cache
def _load(reader: str, arguments: tuple[str, ...]) -> Any:
    """Load a configuration; rows share many."""
    module, _, name = reader.partition(":")
    with importing():  # another project's objective brings torch
        kind = getattr(importlib.import_module(module), name)
    return load(kind, list(arguments)) if isinstance(kind, type) else kind(list(arguments))


def arguments_of(overrides: _Values) -> list[str]:
    """Return overrides as they are typed on a command line."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in overrides.items()}
    return [f"{key}={text}" for key, text in texts.items()]


def find_config(path: str) -> str:
    """Return the path of a configuration: from the current folder, else from the checkout."""
    is_elsewhere = not Path(path).is_file() and (ROOT / path).is_file()
    return str(ROOT / path) if is_elsewhere else path


# ---------------------------------------------------------------- reading it


def read_plan(name: str, arguments: Sequence[str]) -> Plan:
    """Read `configs/ablate/NAME.yaml`, or a file, and check each configuration in it.

    Args:
        name: As typed.
        arguments: `key=value` of all rows' pretraining; `measures.NAME.key=value` of a measure;
            `budget=steps` or `budget.minutes=5`.

    Raises:
        UserError: A key or a value is wrong; the row is named.
    """
    path = _find(name)
    content, typed = _mapping(path, read_yaml(path), _KEYS), _split(arguments)
    minutes = _read_minutes(typed.pop("budget", content.get("budget")), typed)
    written = _mapping("measures", content.get("measures"))
    measures = [_read_measure(key, value, typed) for key, value in written.items()]
    wrong = [key for key in typed if key.startswith(("measures.", "budget."))]
    require(not wrong, f"{', '.join(wrong)} is no key; measures: {', '.join(written)}")
    fixed = dict.fromkeys(("run.dir", "run.seed", "optim.steps"), _ALIKE)
    fixed |= {"optim.warmup_steps": _ALIKE} if minutes else {}
    fixed |= dict.fromkeys(typed, "as the command line does; change it in a copy of the YAML")
    common = _flat("common", content.get("common")) | typed
    script = _pretraining(str(path), content.get("script", "pretrain"))
    base = Command("", script, content.get("config"), common)
    written = _mapping("rows", content.get("rows"))
    require(bool(written), f"{path} has no rows; see configs/ablate/")
    rows = {key: _read_row(key, value, base, fixed) for key, value in written.items()}
    seeds = read_seeds("seeds", content.get("seeds", [0]))
    show, paper = content.get("show") or _SHOWN, content.get("paper") or "a published value"
    return Plan(Path(path).stem, rows, measures, minutes, seeds, tuple(show), str(paper))


def read_seeds(key: str, values: Any) -> tuple[int, ...]:
    """Return the seeds of a list, or of text such as 0,1,2.

    Raises:
        UserError: They are no numbers from 0, or one is there twice.
    """
    seeds: Any = values
    if isinstance(values, str):
        seeds = [int(part) if part.isdecimal() else part for part in values.split(",")]
    is_list = isinstance(seeds, list) and len(seeds) > 0
    is_right = is_list and all(type(seed) is int and seed >= 0 for seed in seeds)
    rule = "is no list of numbers from 0; try [0, 1, 2], or --seeds=0,1,2"
    require(is_right, f"{key}={values} {rule}")
    require(len(set(seeds)) == len(seeds), f"{key}={values} names a seed twice")
    return tuple(seeds)


def _find(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        return find_config(name)
    names = sorted(path.stem for path in (ROOT / "configs/ablate").glob("*.yaml"))
    rule = f"is no ablation; give {', '.join(names)}, or a FILE.yaml like those"
    require(name in names, f"{name} {rule}")
    return str(ROOT / f"configs/ablate/{name}.yaml")


def _read_minutes(written: Any, typed: _Values) -> float | None:
    where = "budget (steps, or {minutes: 5})"
    budget = {} if written == "steps" else _mapping(where, written, ["minutes"])
    value = typed.pop("budget.minutes", budget.get("minutes"))
    if value is None:
        return None
    is_number = re.fullmatch(r"\d*\.?\d+", str(value)) is not None
    require(is_number and float(value) > 0, f"budget.minutes={value} must be a number above 0")
    return float(value)


def _read_measure(name: str, written: Any, typed: _Values) -> Measure:
    where = f"measures.{name}"
    values = _mapping(where, written, ("script", "config", "set", "show"))
    overrides = _flat(f"{where}.set", values.get("set"))
    for key in [key for key in typed if key.startswith(f"{where}.")]:
        overrides[key.removeprefix(f"{where}.")] = typed.pop(key)
    script, show = values.get("script", name), tuple(map(str, values.get("show") or ()))
    require(script in MEASURES, f"{where}.script={script} is not one of {', '.join(MEASURES)}")
    measure = Measure(name, MEASURES[script], values.get("config"), overrides, show)
    _check(where, measure)
    return measure


def _read_row(name: str, written: Any, base: Command, fixed: Mapping[str, str]) -> Row:
    """Read a row over the pretraining that all share; `fixed` says why it must not set a key."""
    where = f"row {name}"
    values = _mapping(where, written, ("script", "config", "set", "untrained", "paper"))
    script = _pretraining(where, values["script"]) if "script" in values else base.script
    own, is_untrained = _flat(f"{where}: set", values.get("set")), bool(values.get("untrained"))
    for key in own:
        require(key not in fixed, f"{where} sets {key}, {fixed.get(key)}")
    overrides = base.overrides | own | (_UNTRAINED if is_untrained else {})
    config, paper = values.get("config", base.config), values.get("paper")
    row = Row(name, script, config, overrides, is_untrained, paper)
    _check(where, row)
    return row


def _pretraining(where: str, name: str) -> Script:
    known = ", ".join(PRETRAININGS)
    require(name in PRETRAININGS, f"{where}: script={name} is not one of {known}")
    return PRETRAININGS[name]


def _check(where: str, part: Command) -> None:
    """Refuse what cannot have a folder, and what its script would refuse."""
    is_folder = re.fullmatch(r"\w[\w.+-]*", part.name) is not None
    require(is_folder, f"{where} names a folder; use letters, digits and . _ + - alone")
    try:
        part.load()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


# ---------------------------------------------------------------- its values


def _split(arguments: Sequence[str]) -> _Values:
    """Return the keys of `key=value` arguments, and their values as they are typed."""
    values: _Values = {}
    for argument in arguments:
        key, equals, values[key] = argument.partition("=")
        require(bool(equals and key), f"{argument} is not of the form key.sub=value; see --help")
    return values


def _mapping(where: str, value: Any, known: Collection[str] | None = None) -> _Values:
    """Return a mapping with text keys; refuse another thing, and keys that are not known."""
    value = {} if value is None else value
    require(isinstance(value, Mapping), f"{where} must hold keys and values, and is {value}")
    values = {str(key): item for key, item in value.items()}
    for key in values:
        if known is not None and key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: {key} is no key; {hint}")
    return values


def _flat(where: str, value: Any, prefix: str = "") -> _Values:
    """Return dotted keys of nested ones: {a: {b: 1}} -> {a.b: 1}."""
    flat: _Values = {}
    for key, item in _mapping(where, value).items():
        name = f"{prefix}{key}"
        flat |= _flat(where, item, f"{name}.") if isinstance(item, Mapping) else {name: item}
    return flat
