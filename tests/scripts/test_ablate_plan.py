"""What an ablation's YAML may say; and that every file of configs/ablate is right."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.settings import UserError
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from scripts._ablate.plan import Plan, arguments_of, read_plan

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    *("learn", "learn_rates", "masks", "patch_size", "pooling", "positions", "ratio", "spectrum"),
    *("targets", "vilt"),
]
MINE: dict[str, Any] = {
    "config": "configs/pretrain/cifar10.yaml",
    "measures": {"fewshot": {"set": {"data.train": "a.tar", "data.val": "b.tar"}}},
    "rows": {"a": {"set": {"corruption": {"ratio": 0.5}}}, "b": {"set": {"encoder.depth": 2}}},
}

ALTERNATIVE = {
    "script": "alternative",
    "config": "configs/pretrain/cifar10-mask-tokens.yaml",
    "set": {"alternative.name": "simmim"},
}


def read(folder: Path, *arguments: str, **parts: Any) -> Plan:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(MINE | parts))
    return read_plan(str(path), arguments)


# ---------------------------------------------------------------- the files


def test_there_is_a_file_for_each_name() -> None:
    assert sorted(path.stem for path in (ROOT / "configs/ablate").glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_every_file_loads(name: str) -> None:
    ablation = read_plan(name, [])
    assert ablation.name == name
    steps = set[int]()
    for row in ablation.rows.values():
        config = row.load()
        splits = [config.data.shards, config.data.val_shards]
        for measure in ablation.measures:
            splits += [measure.overrides["data.train"], measure.overrides["data.val"]]
        assert not any("test" in str(split) for split in splits)
        if not row.is_untrained:
            steps.add(config.optim.steps)
    assert len(steps) == 1
    texts = [str(row) for row in ablation.rows.values()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_command_budget_cost_and_result(name: str) -> None:
    text = (ROOT / f"configs/ablate/{name}.yaml").read_text()
    assert f"# command: python scripts/ablate.py {name}" in text
    for word in ("budget:", "measure:", "cost:", "result:"):
        assert f"\n# {word}" in text


def test_the_papers_table_of_positions_stands_beside_ours() -> None:
    rows = read_plan("positions", []).rows
    assert rows["none"].paper == 0.61382
    assert rows["learned_1d-every_layer_shared"].paper == 0.64292
    assert rows["relative"].paper == 0.64032
    assert rows["sincos_2d-stem"].paper is None


def test_the_benchmarks_rows_differ_in_their_recipes_alone() -> None:
    rows = read_plan("learn", []).rows
    configs = {name: row.load() for name, row in rows.items() if not row.is_untrained}
    assert list(configs) == ["ours", "ours-paper", "mpp", "mae", "simmim"]
    for name, config in configs.items():
        assert config.data == configs["ours"].data
        ours = configs["ours"]
        assert replace(config.optim, betas=ours.optim.betas) == ours.optim
        how = {key: getattr(ours.encoder, key) for key in ("sees_masked", "position", "args")}
        assert replace(config.encoder, **how) == ours.encoder, name
        assert config.run.precision == "bf16"


def test_the_candidate_rates_are_of_the_benchmarks_rows() -> None:
    rows, candidates = read_plan("learn", []).rows, read_plan("learn_rates", []).rows
    for name in ("ours", "ours-paper", "mpp", "mae", "simmim"):
        for rate in (1e-3, 2e-3, 4e-3):
            row = candidates[f"{name}-{rate:.0e}".replace("e-0", "e-")]
            assert (row.script, row.config) == (rows[name].script, rows[name].config)
            assert row.overrides == rows[name].overrides | {"optim.lr": rate}


# ---------------------------------------------------------------- what is given


def test_the_command_line_is_of_all_rows_and_of_measures(tmp_path: Path) -> None:
    arguments = ["optim.steps=7", "optim.warmup_steps=1", "budget.minutes=2", "data.mean=[0,0,1]"]
    ablation = read(tmp_path, *arguments, "measures.fewshot.fewshot.shots=[1,2]")
    assert ablation.minutes == 2
    for row in ablation.rows.values():
        config = row.load()
        assert (config.optim.steps, list(config.data.mean or [])) == (7, [0, 0, 1])
    assert ablation.measures[0].load().fewshot.shots == (1, 2)


def test_a_row_can_be_pretrained_by_another_projects_objective(tmp_path: Path) -> None:
    plan = read(tmp_path, rows={"ours": {}, "theirs": ALTERNATIVE})
    assert plan.rows["theirs"].load().alternative.name == "simmim"
    assert not hasattr(plan.rows["ours"].load(), "alternative")


SHARDS = ["*.tar", "{a,b}.tar", "a-{000000..000009}.tar", "1e3", "exp #7", ["a.tar", "b c.tar"]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("data.shards", value) for value in SHARDS),
        ("optim.lr", 1e-5),
        ("optim.betas", (0.5, 1e-1)),
        ("run.compile", True),
        ("data.val_shards", None),
        ("encoder.args", {"act_layer": "gelu", "mlp_ratio": 2.0}),
    ],
)
def test_a_value_of_the_yaml_is_typed_so_that_it_is_read_back(key: str, value: object) -> None:
    config = load(PretrainConfig, ["data.shards=a.tar", *arguments_of({key: value})])
    group, name = key.split(".")
    assert getattr(getattr(config, group), name) == value


@pytest.mark.parametrize(
    ("parts", "arguments", "message"),
    [
        ({"row": {}}, [], "row is no key; did you mean rows?"),
        ({"rows": {}}, [], "has no rows"),
        ({"rows": {"a": {"sets": {}}}}, [], "row a: sets is no key; did you mean set?"),
        (
            {"rows": {"a": {"set": {"corruption.ration": 0.5}}}},
            [],
            "row a: corruption.ration is no key; did you mean corruption.ratio?",
        ),
        ({"rows": {"a": {"set": {"corruption.ratio": 2}}}}, [], "row a: corruption.ratio=2"),
        ({"rows": {"a": {"set": {"optim.steps": 2}}}}, [], "row a sets optim.steps, which the"),
        ({"rows": {"a/b": {}}}, [], "row a/b names a folder; use letters, digits"),
        ({"rows": {"a": {"script": "x"}}}, [], "row a: script=x is not one of pretrain, altern"),
        (
            {"rows": {"a": {"script": "alternative", "set": {"alternative.name": "mae"}}}},
            [],
            "row a: corruption.ratio, corruption.mask_ratio, corruption.random_ratio, "
            "corruption.predicted_ratio is of our own",
        ),
        (
            {"rows": {"a": ALTERNATIVE}},
            ["corruption.ratio=0.5"],
            "row a: corruption.ratio is of our own objective, and an alternative would ignore it",
        ),
        ({"measures": {"knn": {}}}, [], "measures.knn.script=knn is not one of fewshot, probe"),
        ({"measures": {"fewshot": {}}}, [], "measures.fewshot: data.train is missing"),
        ({"budget": {"minutes": 0}}, [], "budget.minutes=0 must be a number above 0"),
        ({"budget": "minutes"}, [], "budget (steps, or {minutes: 5}) must hold keys and values"),
        ({"seeds": [0, 0]}, [], "seeds=[0, 0] names a seed twice"),
        ({"seeds": "all"}, [], "seeds=all is no list of numbers from 0; try [0, 1, 2]"),
        (
            {},
            ["encoder.depth=1"],
            "row b sets encoder.depth, as the command line does; change it in a copy",
        ),
        ({}, ["optim.step=1"], "row a: optim.step is no key; did you mean optim.steps?"),
        ({}, ["measures.x.y=1"], "measures.x.y is no key; measures: fewshot"),
        ({}, ["optim.steps"], "optim.steps is not of the form key.sub=value"),
    ],
)
def test_a_mistake_names_the_row_and_the_key(
    tmp_path: Path, parts: dict[str, Any], arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, *arguments, **parts)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(UserError, match="mask is no ablation; give learn, learn_rates, masks, "):
        read_plan("mask", [])
