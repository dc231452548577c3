"""Configurations: every file loads, precedence, and a help that names every key."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import finetune.fewshot
import finetune.probe
import finetune.run
import pretrain.run
from data.settings import UserError
from finetune.config import FinetuneConfig
from finetune.frozen import FewshotConfig, LinearConfig
from pretrain.config import PretrainConfig, keys, load, usage

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHARDS = "data.shards=a.tar"
LABELLED = ["data.train=a.tar", "data.val=b.tar"]


def pretrain_files() -> list[Path]:
    return sorted((CONFIGS / "pretrain").glob("*.yaml"))


def preset_files() -> list[Path]:
    return sorted((CONFIGS / "encoder").glob("*.yaml"))


def finetune_files() -> list[Path]:
    return sorted((CONFIGS / "finetune").glob("*.yaml"))


# ---------------------------------------------------------------- the files


@pytest.mark.parametrize("path", pretrain_files(), ids=lambda path: path.stem)
def test_every_pretraining_file_loads(path: Path) -> None:
    config = load(PretrainConfig, [str(path), SHARDS])
    assert config.data.shards == "a.tar"
    assert config.optim.batch_size % 2 == 0


def test_words_behind_a_recipe_are_the_small_recipes_objective() -> None:
    recipe, words = CONFIGS / "pretrain/vit_base.yaml", CONFIGS / "objective/words.yaml"
    large = load(PretrainConfig, [str(recipe), str(words), SHARDS])
    small = load(PretrainConfig, [str(CONFIGS / "pretrain/cifar10.yaml"), SHARDS])
    for part in ("corruption", "target", "decoder"):
        assert getattr(large, part) == getattr(small, part)
    for key in ("position", "args", "sees_masked"):
        assert getattr(large.encoder, key) == getattr(small.encoder, key)
    assert large.optim.betas == small.optim.betas
    assert large.encoder.name == "vit_base_patch16_224"
    assert large.data.image_size == 224


@pytest.mark.parametrize("path", finetune_files(), ids=lambda path: path.stem)
def test_every_fine_tuning_file_loads(path: Path) -> None:
    kind = FewshotConfig if "fewshot" in path.stem else FinetuneConfig
    assert load(kind, [str(path), *LABELLED]).data.train == "a.tar"


def test_there_are_files() -> None:
    assert {"demo", "cifar10", "vit_base"} <= {path.stem for path in pretrain_files()}
    assert {"demo", "paper"} <= {path.stem for path in finetune_files()}


# ---------------------------------------------------------------- precedence


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim:\n  lr: 0.5\n  steps: 7\n  warmup_steps: 2\n")
    config = load(PretrainConfig, [str(path), SHARDS, "optim.steps=8", "optim.steps=9"])
    assert (config.optim.lr, config.optim.steps, config.optim.warmup_steps) == (0.5, 9, 2)
    assert config.optim.batch_size == 4096


def test_later_files_win_and_overrides_over_all(tmp_path: Path) -> None:
    recipe, preset = tmp_path / "recipe.yaml", tmp_path / "preset.yml"
    recipe.write_text("optim: {lr: 0.5, steps: 70, warmup_steps: 2}\nencoder: {args: {a: 1}}\n")
    preset.write_text("optim: {steps: 80, lr: 0.6}\nencoder: {depth: 3, args: {b: 2}}\n")
    config = load(PretrainConfig, [str(recipe), str(preset), SHARDS, "optim.lr=0.7"])
    assert (config.optim.lr, config.optim.steps, config.optim.warmup_steps) == (0.7, 80, 2)
    assert (config.encoder.depth, config.encoder.args) == (3, {"a": 1, "b": 2})
    other = load(PretrainConfig, [str(preset), str(recipe), SHARDS])
    assert (other.optim.lr, other.optim.steps) == (0.5, 70)


@pytest.mark.parametrize("path", preset_files(), ids=lambda path: path.stem)
def test_an_encoder_goes_behind_any_recipe(path: Path) -> None:
    encoder = load(PretrainConfig, [str(path), SHARDS]).encoder
    for recipe in pretrain_files():
        own = load(PretrainConfig, [str(recipe), SHARDS]).encoder
        found = load(PretrainConfig, [str(recipe), str(path), SHARDS]).encoder
        # how it is trained is the recipe's, its size its own
        args = {**own.args, **encoder.args}
        kept = replace(encoder, sees_masked=own.sees_masked, position=own.position, args=args)
        assert found == kept
    paper = str(CONFIGS / "finetune" / "paper.yaml")
    assert load(FinetuneConfig, [paper, str(path), *LABELLED]).encoder == replace(
        encoder, init=None
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["VIT", SHARDS, "VIT"], "VIT stands after a key.sub=value; name every CONFIG.yaml before"),
        (["VIT", "missing.yaml"], "missing.yaml: no such configuration file; see configs/"),
        (["VIT", "optim.lr"], "optim.lr is neither a CONFIG.yaml nor key.sub=value; see --help"),
        ([SHARDS, "optim.lr"], "optim.lr is not of the form key.sub=value; see --help"),
    ],
)
def test_files_that_cannot_be_merged_are_refused(arguments: list[str], text: str) -> None:
    path = str(CONFIGS / "pretrain" / "vit_base.yaml")
    with pytest.raises(UserError) as caught:
        load(PretrainConfig, [argument.replace("VIT", path) for argument in arguments])
    assert text.replace("VIT", path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_defaults_are_the_papers() -> None:
    config = load(PretrainConfig, [SHARDS])
    assert (config.optim.lr, config.optim.batch_size, config.optim.betas) == (
        2e-4,
        4096,
        (0.9, 0.999),
    )
    assert (config.optim.weight_decay, config.optim.warmup_steps) == (0.1, 10_000)
    corruption = config.corruption
    assert (corruption.ratio, corruption.mask_ratio, corruption.random_ratio) == (0.5, 0.8, 0.1)
    assert config.target.bits == 3
    fine = load(FinetuneConfig, LABELLED)
    assert (fine.optim.algorithm, fine.optim.momentum, fine.optim.batch_size) == ("sgd", 0.9, 512)
    assert (fine.optim.weight_decay, fine.optim.grad_clip, fine.optim.warmup_steps) == (0, 1, 500)


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.betas=[0.8,0.9]", "optim.betas", (0.8, 0.9)),
        ("data.image_size=[32,48]", "data.size", (32, 48)),
        ("data.image_size=32", "data.size", (32, 32)),
        ("data.mean=[0.1,0.2,0.3]", "data.mean", (0.1, 0.2, 0.3)),
        ("data.shards=[a.tar,b.tar]", "data.shards", ["a.tar", "b.tar"]),
        ("data.shards=s/a-{000..009}.tar", "data.shards", "s/a-{000..009}.tar"),
        ("run.dir=runs/a=b", "run.dir", "runs/a=b"),
        ("encoder.args.reg_tokens=4", "encoder.args", {"reg_tokens": 4}),
        ("encoder.depth=null", "encoder.depth", None),
        ("optim.steps=${optim.batch_size}", "optim.steps", 4096),
    ],
)
def test_values_from_the_command_line(argument: str, name: str, value: object) -> None:
    config: Any = load(PretrainConfig, [SHARDS, "optim.warmup_steps=1", argument])
    for part in name.split("."):
        config = getattr(config, part)
    assert config == value
    assert type(config) is type(value)


def test_arguments_of_the_encoder_add_up(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("encoder:\n  args: {reg_tokens: 4, drop_path_rate: 0.1}\n")
    config = load(PretrainConfig, [str(path), SHARDS, "encoder.args.drop_path_rate=0.2"])
    assert config.encoder.args == {"reg_tokens": 4, "drop_path_rate": 0.2}


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_a_saved_configuration_loads_as_it_was(tmp_path: Path, kind: type[Any]) -> None:
    """So the config.yaml of a run is a CONFIG.yaml."""
    data = [SHARDS] if kind is PretrainConfig else LABELLED
    config = load(kind, [*data, "optim.lr=0.3", "data.image_size=[32,48]", "encoder.args.a=1"])
    OmegaConf.save(OmegaConf.structured(config), tmp_path / "config.yaml")
    assert load(kind, [str(tmp_path / "config.yaml")]) == config


# ---------------------------------------------------------------- the help


def leaves(kind: type[Any]) -> set[str]:
    """Name all keys by walking the dataclasses."""
    names: set[str] = set()
    for part in fields(kind):
        default: Any = part.default_factory() if callable(part.default_factory) else part.default
        assert is_dataclass(default)
        names |= {f"{part.name}.{field.name}" for field in fields(default)}
    return names


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig, FewshotConfig, LinearConfig])
def test_the_help_names_every_key_with_type_default_and_meaning(kind: type[Any]) -> None:
    lines = usage(kind, "COMMAND").splitlines()
    assert lines[0] == "usage: COMMAND [CONFIG.yaml ...] [key.sub=value ...]"
    found = keys(kind)
    assert {key.name for key in found} == leaves(kind)
    assert len(found) == len(leaves(kind))
    for key in found:
        default = "null" if key.default is None else key.default
        place = lines.index(f"  {key.name}  ({key.type}, default {default})")
        assert lines[place + 1].strip().startswith(key.meaning)
        assert ("[may change on resume]" in lines[place + 1]) == (not key.changes_result)
        assert 10 < len(key.meaning) < 100
        assert key.type != "Any", key.name


def test_keys_that_change_nothing_but_speed_and_talk_are_free() -> None:
    free = {key.name for key in keys(PretrainConfig) if not key.changes_result}
    assert {"run.dir", "run.log_every", "run.checkpoint_every", "data.workers"} <= free
    assert not {name for name in free if name.startswith(("optim.", "corruption.", "encoder."))}
    assert "run.seed" not in free


@pytest.mark.parametrize("module", [pretrain.run, finetune.run, finetune.fewshot, finetune.probe])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_printed_and_nothing_is_run(
    module: Any, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module.main([flag])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ")
    assert f"{module.__name__.split('.')[0]}/{module.__name__.split('.')[1]}.py" in printed
