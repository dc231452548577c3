"""An ablation's YAML, read and checked before anything runs.

config: configs/pretrain/cifar10.yaml     # the pretraining that all rows share
common: {optim.steps: 200}                # overrides of all rows
budget: steps                             # or {minutes: 5, warmup_seconds: 20}
seeds: [0, 1, 2]
show: [val/loss, val/accuracy_mask]       # pretraining's figures in table.md; table.json has all
measures:                                 # of the frozen encoder, or fine-tuned
  fewshot:
    script: fewshot                       # fewshot, probe or finetune
    config: null                          # or a YAML of configs/finetune
    set: {data.train: A, data.val: B, fewshot.layers: [2, 4]}
    show: [5shot]                         # its figures in table.md; default: all accuracies
rows:
  first: {set: {corruption.ratio: 0.5}}
  second:
    set: {corruption.ratio: 0.3}
    paper: 0.64                           # a published value, shown beside it
    measures: {fewshot: {fewshot.poolings: [class]}}  # its own overrides of a measure
  third: {encoder_of: first}              # measures first's encoder, by its own overrides
  fourth: {untrained: true}               # one step at learning rate 0: as the other rows begin
                                          # (set: encoder.position here, where they change it)
  fifth:                                  # another project's objective: pretrain_alternative.py
    script: alternative
    config: configs/pretrain/cifar10-mask-tokens.yaml  # in place of the above
    set: {alternative.name: mae}
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data.settings import UserError, require
from pretrain.configuration.layers import read_yaml
from scripts._ablate.plan import (
    PRETRAININGS,
    ROOT,
    SCRIPTS,
    Ablation,
    Budget,
    Measure,
    Row,
    arguments_of,
    find_config,
    load_once,
)
from scripts._ablate.values import Overrides, check_name, flat, mapping, read_arguments

_SHOWN = ("val/loss", "val/accuracy", "val/accuracy_mask", "val/accuracy_neighbour")
_UNTRAINED = {"optim.steps": 1, "optim.warmup_steps": 0, "optim.lr": 0.0}
_FITTED = ("optim.steps", "optim.warmup_steps")  # of an equal wall time


def read_plan(name: str, arguments: Sequence[str]) -> Ablation:
    """Read `configs/ablate/NAME.yaml`, or a file, and check each row's configurations.

    Args:
        name: What the user gave.
        arguments: `key=value` of all rows' pretraining; `measures.NAME.key=value` of a measure;
            `budget=steps` or `budget.minutes=5`.

    Raises:
        UserError: A key or a value is wrong; the row is named.
    """
    path = _find(name)
    content = read_yaml(path)
    known = ("config", "common", "budget", "seeds", "show", "paper", "measures", "rows")
    plan = mapping(content, path, known)
    asked = read_arguments(arguments)
    rows = mapping(plan.get("rows"), "rows")
    require(bool(rows), f"{path} has no rows; see configs/ablate/")
    budget = _budget(plan.get("budget"), asked)
    measures = _measures(mapping(plan.get("measures"), "measures"), asked)
    read = partial(_row, plan, asked, budget, measures)
    ablation = Ablation(
        Path(path).stem,
        _linked({key: read(key, row) for key, row in rows.items()}),
        budget,
        seeds_of(plan.get("seeds", [0]), "seeds"),
        tuple(plan.get("show") or _SHOWN),
        str(plan.get("paper") or "a published value"),
    )
    _check(ablation)
    return ablation


def seeds_of(values: Any, key: str) -> tuple[int, ...]:
    """Check a list of seeds."""
    is_list = isinstance(values, list | tuple) and len(values) > 0
    require(
        is_list and all(type(seed) is int and seed >= 0 for seed in values),
        f"{key}={values} is no list of numbers from 0; try [0, 1, 2]",
    )
    require(len(set(values)) == len(values), f"{key}={values} names a seed twice")
    return tuple(values)


def _find(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        return find_config(name)
    folder = ROOT / "configs/ablate"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    require(
        name in names, f"{name} is no ablation; give {', '.join(names)}, or a FILE.yaml like those"
    )
    return str(folder / f"{name}.yaml")


# ---------------------------------------------------------------- the parts


def _budget(written: Any, asked: Overrides) -> Budget:
    if "budget" in asked:
        written = asked.pop("budget")
    if written in (None, "steps"):
        written = {}
    known = ("minutes", "warmup_seconds")
    values = mapping(written, "budget (steps, or {minutes: 5})", known)
    values |= {key: asked.pop(f"budget.{key}") for key in known if f"budget.{key}" in asked}
    for key, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        require(is_number and value > 0, f"budget.{key}={value} must be a number above 0")
    return Budget(**values)


def _measures(written: dict[str, Any], asked: Overrides) -> tuple[Measure, ...]:
    found: list[Measure] = []
    for name, value in written.items():
        where = f"measures.{name}"
        check_name(name, where)
        keys = mapping(value, where, ("script", "config", "set", "show"))
        script = keys.get("script", name)
        require(script in SCRIPTS, f"{where}.script={script} is not one of {', '.join(SCRIPTS)}")
        overrides = flat(mapping(keys.get("set"), f"{where}.set"))
        for key in [key for key in asked if key.startswith(f"{where}.")]:
            overrides[key.removeprefix(f"{where}.")] = asked.pop(key)
        show = tuple(str(figure) for figure in keys.get("show") or ())
        found.append(Measure(name, script, keys.get("config"), overrides, show))
    wrong = [key for key in asked if key.startswith(("measures.", "budget."))]
    require(not wrong, f"{''.join(wrong[:1])} is no key; measures: {', '.join(written)}")
    return tuple(found)


def _row(
    plan: dict[str, Any],
    asked: Overrides,
    budget: Budget,
    measures: tuple[Measure, ...],
    name: str,
    written: Any,
) -> Row:
    where = f"row {name}"
    check_name(name, where)
    known = ("script", "config", "set", "encoder_of", "untrained", "paper", "measures")
    keys = mapping(written, where, known)
    script = keys.get("script", "pretrain")
    require(
        script in PRETRAININGS,
        f"{where}: script={script} is not one of {', '.join(PRETRAININGS)}",
    )
    config = keys.get("config") or plan.get("config")
    if not isinstance(config, str):
        raise UserError(f"{where}: config is missing; name a YAML of configs/pretrain")
    own = flat(mapping(keys.get("set"), f"{where}: set"))
    require(
        "encoder_of" not in keys or not ({"script", "set", "untrained", "config"} & keys.keys()),
        f"{where} measures the encoder of {keys.get('encoder_of')}; leave encoder_of out, or all "
        "but measures and paper",
    )
    fixed = ["run.dir", "run.seed", *(_FITTED if budget.minutes else _FITTED[:1])]
    for key in own:
        require(key not in asked, f"{where} sets {key} itself; change it in a copy of the YAML")
        rule = f"{where} sets {key}, which the ablation sets alike in all rows; use common or seeds"
        require(key not in fixed, rule)
    is_untrained = bool(keys.get("untrained"))
    overrides = {**flat(mapping(plan.get("common"), "common")), **asked, **own}
    changes = mapping(keys.get("measures"), f"{where}: measures")
    for key in changes:
        require(key in [m.name for m in measures], f"{where}: measures.{key} is no measure")
    return Row(
        name,
        script,
        config,
        overrides | (_UNTRAINED if is_untrained else {}),
        str(keys.get("encoder_of") or name),
        is_untrained,
        keys.get("paper"),
        tuple(_changed(measure, changes.get(measure.name), where) for measure in measures),
    )


def _changed(measure: Measure, written: Any, where: str) -> Measure:
    own = flat(mapping(written, f"{where}: measures.{measure.name}"))
    overrides = measure.overrides | own
    return Measure(measure.name, measure.script, measure.config, overrides, measure.show)


def _linked(rows: dict[str, Row]) -> dict[str, Row]:
    """Give rows that measure another's encoder its pretraining."""
    found: dict[str, Row] = {}
    for row in rows.values():
        source = rows.get(row.encoder_of)
        if source is None or source.encoder_of != source.name:
            raise UserError(
                f"row {row.name}: encoder_of={row.encoder_of} is no row with a pretraining of its "
                "own"
            )
        found[row.name] = replace(
            source, **{key: getattr(row, key) for key in ("name", "paper", "measures")}
        )
    return found


def _check(ablation: Ablation) -> None:
    """Load the configurations of all rows as their runs would."""
    for row in ablation.rows.values():
        _load(PRETRAININGS[row.script][0], row.arguments, f"row {row.name}")
        for measure in row.measures:
            kind = SCRIPTS[measure.script][0]
            where = f"row {row.name}, measure {measure.name}"
            _load(kind, arguments_of(measure.config, measure.overrides), where)


def _load(kind: type[Any], arguments: list[str], where: str) -> None:
    try:
        load_once(kind, tuple(arguments))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
