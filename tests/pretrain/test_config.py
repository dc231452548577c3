"""Configurations: every file loads, precedence, and a help that names every key."""

import os
import tempfile
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies

import finetune.fewshot
import finetune.probe
import finetune.run
import pretrain.run
from data.settings import UserError
from finetune.config import FewshotConfig, FinetuneConfig
from finetune.frozen.config import LinearConfig
from finetune.vilt.config import ViltFinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.configuration.hints import _USUAL  # pyright: ignore[reportPrivateUsage]
from pretrain.configuration.load import keys, load, plain_value, to_yaml, usage
from pretrain.vilt.config import ViltConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHARDS = "data.shards=a.tar"
LABELLED = ["data.train=a.tar", "data.val=b.tar"]


def pretrain_files() -> list[Path]:
    files = sorted((CONFIGS / "pretrain").glob("*.yaml"))
    return [path for path in files if path not in vilt_files()]


def vilt_files(folder: str = "pretrain") -> list[Path]:
    return sorted((CONFIGS / folder).glob("vilt*.yaml"))


def preset_files() -> list[Path]:
    return sorted((CONFIGS / "encoder").glob("*.yaml"))


def finetune_files() -> list[Path]:
    files = sorted((CONFIGS / "finetune").glob("*.yaml"))
    return [path for path in files if path not in vilt_files("finetune")]


# ---------------------------------------------------------------- the files


@pytest.mark.parametrize("path", pretrain_files(), ids=lambda path: path.stem)
def test_every_pretraining_file_loads(path: Path) -> None:
    config = load(PretrainConfig, [str(path), SHARDS])
    assert config.data.shards == "a.tar"
    assert (config.optim.batch_size or 2) % 2 == 0


@pytest.mark.parametrize("path", vilt_files(), ids=lambda path: path.stem)
def test_every_file_for_images_with_captions_loads(path: Path) -> None:
    config = load(ViltConfig, [str(path), SHARDS])
    assert config.data.shards == "a.tar"


@pytest.mark.parametrize("path", vilt_files("finetune"), ids=lambda path: path.stem)
def test_every_file_for_images_with_sentences_loads(path: Path) -> None:
    assert load(ViltFinetuneConfig, [str(path), *LABELLED]).data.train == "a.tar"


@pytest.mark.parametrize("name", ["cifar10", "small", "demo"])
def test_words_behind_a_recipe_are_the_small_recipes_objective(name: str) -> None:
    recipe, words = CONFIGS / "pretrain/vit_base.yaml", CONFIGS / "objective/words.yaml"
    large = load(PretrainConfig, [str(recipe), str(words), SHARDS])
    small = load(PretrainConfig, [str(CONFIGS / f"pretrain/{name}.yaml"), SHARDS])
    for part in ("corruption", "target", "decoder"):
        assert getattr(large, part) == getattr(small, part)
    for key in ("position", "args", "sees_masked"):
        assert getattr(large.encoder, key) == getattr(small.encoder, key)
    assert large.optim.betas == small.optim.betas
    assert large.encoder.name == "vit_base_patch16_224"
    assert large.data.image_size == 224


def test_the_papers_objective_behind_the_demo_is_that_of_the_papers_recipe() -> None:
    files = [CONFIGS / "pretrain/demo.yaml", CONFIGS / "objective/paper.yaml"]
    demo = load(PretrainConfig, [*map(str, files), SHARDS])
    paper = load(PretrainConfig, [str(CONFIGS / "pretrain/vit_base.yaml"), SHARDS])
    for part in ("corruption", "target", "decoder"):
        assert getattr(demo, part) == getattr(paper, part)
    for key in ("placement", "sees_masked"):
        assert getattr(demo.encoder, key) == getattr(paper.encoder, key)
    assert demo.optim.betas == paper.optim.betas


@pytest.mark.parametrize("path", finetune_files(), ids=lambda path: path.stem)
def test_every_fine_tuning_file_loads(path: Path) -> None:
    kind = FewshotConfig if "fewshot" in path.stem else FinetuneConfig
    assert load(kind, [str(path), *LABELLED]).data.train == "a.tar"


def test_there_are_files() -> None:
    assert {"demo", "cifar10", "vit_base"} <= {path.stem for path in pretrain_files()}
    for folder in ("pretrain", "finetune"):
        assert "vilt-demo" in {path.stem for path in vilt_files(folder)}
    assert {"demo", "paper"} <= {path.stem for path in finetune_files()}


# ---------------------------------------------------------------- precedence


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim:\n  lr: 0.5\n  steps: 7\n  warmup_steps: 2\n")
    config = load(PretrainConfig, [str(path), SHARDS, "optim.steps=8", "optim.steps=9"])
    assert (config.optim.lr, config.optim.steps, config.optim.warmup_steps) == (0.5, 9, 2)
    assert config.optim.lr != load(PretrainConfig, [SHARDS]).optim.lr


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
    assert (config.optim.lr, config.optim.betas) == (2e-4, (0.9, 0.999))
    assert config.optim.weight_decay == 0.1
    corruption = config.corruption
    assert (corruption.ratio, corruption.mask_ratio, corruption.random_ratio) == (0.5, 0.8, 0.1)
    assert config.target.bits == 3
    fine = load(FinetuneConfig, LABELLED)
    assert (fine.optim.algorithm, fine.optim.momentum, fine.optim.lr) == ("sgd", 0.9, 0.01)
    assert (fine.optim.weight_decay, fine.optim.grad_clip) == (0, 1)
    assert replace(fine.optim, steps=10_000).num_warmup_steps == 500


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
        ("optim.steps=${target.num_words}", "optim.steps", 512),
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
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(kind, [str(tmp_path / "config.yaml")]) == config


# ---------------------------------------------------------------- text, as it is written


def value(name: str, *arguments: str) -> Any:
    return plain_value(load(PretrainConfig, [SHARDS, *arguments]), name)


@pytest.mark.parametrize(
    "text", ["1e3", "exp #7", "2024-05-01", "yes", "010", "1_000", "a: b", "-"]
)
def test_text_is_taken_as_it_is_typed(text: str) -> None:
    assert value("run.dir", f"run.dir={text}") == text
    for name in ("data.cache_dir", "data.val_shards", "encoder.name", "run.dir"):
        assert value(name, f"{name}=${{{text}}}*") == f"${{{text}}}*"


@pytest.mark.parametrize("text", ["1e3", "2024-05-01", "yes", "on", "010", "1_000", "1:30", "x y"])
def test_text_is_taken_as_it_is_written_in_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"run: {{dir: {text}}}\ndata:\n  val_shards: [{text}, '{text}']\n")
    config = load(PretrainConfig, [str(path), SHARDS])
    assert (config.run.dir, config.data.val_shards) == (text, [text, text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*.tar", "*.tar"),
        ("{a,b}.tar", "{a,b}.tar"),
        ("[v2]/x.tar", "[v2]/x.tar"),
        ("[v2]/x[1]", "[v2]/x[1]"),
        ("[a.tar, b c.tar]", ["a.tar", "b c.tar"]),
        ("['a, b.tar',1e3]", ["a, b.tar", "1e3"]),
        ("[a-{0,1}.tar, *.tar]", ["a-{0,1}.tar", "*.tar"]),
    ],
)
def test_shards_are_text_or_a_list_of_texts(text: str, expected: object) -> None:
    assert value("data.shards", f"data.shards={text}") == expected


@pytest.mark.parametrize("nothing", ["none", "null", "None"])
def test_none_and_null_mean_nothing(tmp_path: Path, nothing: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{val_shards: {nothing}}}\nencoder: {{depth: {nothing}, name: }}\n")
    config = load(PretrainConfig, [str(path), SHARDS, f"data.mean={nothing}"])
    assert config.data.val_shards is config.encoder.depth is config.encoder.name is None
    assert config.data.mean is None
    assert value("encoder.init", f"encoder.init={nothing}") == "none"
    assert value("run.grad_checkpointing", f"run.grad_checkpointing={nothing}") == "none"
    assert value("run.trackers", f"run.trackers={nothing}") == []


def test_a_word_none_stays_one() -> None:
    assert value("encoder.position", "encoder.position=none") == "none"
    assert value("encoder.position", "encoder.position=null") is None


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("run.dir", "data.cache_dir", "encoder.init", "encoder.like", "data.val_shards"):
        assert value(name, f"{name}=~/x") == f"{tmp_path}/x"
    assert value("data.shards", "data.shards=[~/a.tar,./~b.tar]") == [
        f"{tmp_path}/a.tar",
        "./~b.tar",
    ]
    fewshot = load(FewshotConfig, [*LABELLED, "fewshot.dir=~", "fewshot.features=~/f"]).fewshot
    assert (fewshot.dir, fewshot.features) == (str(tmp_path), f"{tmp_path}/f")
    (tmp_path / "mine.yaml").write_text("data: {shards: ~/a.tar}\n")
    assert load(PretrainConfig, ["~/mine.yaml"]).data.shards == f"{tmp_path}/a.tar"
    with pytest.raises(UserError, match=r"~nobody-here/x: ~nobody-here has no home folder here"):
        load(PretrainConfig, [SHARDS, "run.dir=~nobody-here/x"])


names = strategies.text(
    strategies.characters(exclude_characters="\0", exclude_categories=()), min_size=1
).filter(lambda text: not text.startswith("~"))


@pytest.mark.slow
@settings(max_examples=30)
@given(names, strategies.lists(names, min_size=1), names)
def test_any_text_is_read_back_from_config_yaml(folder: str, shards: list[str], arg: str) -> None:
    path = Path(tempfile.gettempdir(), f"round-trip-{os.getpid()}.yaml")
    config = load(PretrainConfig, [SHARDS, f"run.dir={folder}"])
    data = replace(config.data, val_shards=shards)
    config = replace(config, data=data, encoder=replace(config.encoder, args={"a": arg}))
    try:
        path.write_text(to_yaml(config), encoding="utf-8")
        assert load(PretrainConfig, [str(path)]) == config
    finally:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- all mistakes at once


def problems(*arguments: str, kind: type[Any] = PretrainConfig) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(kind, list(arguments))
    return str(caught.value).splitlines()


def test_every_wrong_value_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "run:\n  dir: x\noptim:\n  lr: 0,001\n  steps: 1.5\n  ema:\n"
        "data:\n  shards: {a: 1}\n  mean: 0.5\n  stdd: 3\n  trace: maybe\ncorruption: 3\n"
    )
    assert problems(str(path), "optim.betas=[1]", "foo=1") == [
        "corruption=3 is no value: corruption is a group of keys, such as corruption.kind "
        f"({path}, line 12)",
        f"data.stdd is no key; did you mean data.std? ({path}, line 10)",
        "foo is no key; see --help",
        f"optim.lr=0,001 is no float; write 0.001 ({path}, line 4)",
        f"optim.steps=1.5 is no int | None; see --help ({path}, line 5)",
        f"optim.ema= is no float; it needs a value ({path}, line 6)",
        f"data.shards={{'a': 1}} is no str | list[str]; see --help ({path}, line 8)",
        "data.mean=0.5 is no tuple[float, ...] | None; write a list, such as [0.5] "
        f"({path}, line 9)",
        f"data.trace=maybe is no bool; write true or false ({path}, line 11)",
        "optim.betas=[1] is no tuple[float, float]; it takes 2 values",
    ]


def test_every_group_that_breaks_a_rule_is_named() -> None:
    found = problems(SHARDS, "run.log_every=0", "optim.steps=0", "corruption.ratio=2")
    assert [line.split("=")[0] for line in found] == [
        "run.log_every",
        "corruption.ratio",
        "optim.steps",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("run:\n\tdir: x\n", "indent by spaces, not tabs"),
        ("run: {dir: x}\nrun: {seed: 1}\n", "run is there twice, in lines 1 and 2"),
        ("run: {dir: }\n", "run.dir= is no str; it needs a value"),
        ("run: {dir: [a]}\n", "run.dir=['a'] is no str"),
        ("run: {trackers: wandb}\n", "run.trackers=wandb is no tuple[str, ...]; write a list"),
        ("optim: &x {lr: *x}\n", "optim.lr={'lr': {...}} is no float"),
        ("distributed_type: NO\nnum_processes: 2\n", "is a configuration of accelerate; give it"),
        ("head: {kind: linear}\nmix: {mixup: 1}\n", "head.kind, mix.mixup are keys of finetune/"),
        ("data: {train: a.tar}\n", "data.train is no key; did you mean data.shards?"),
        ("data: {caption_key: a}\n", "data.caption_key is a key of pretrain/vilt/run.py, not of "),
        ("loss: {words: 1}\n", "loss.words is a key of pretrain/vilt/run.py, not of this command"),
        ("rows: {a: 1}\n", "rows.a is a key of scripts/ablate.py, not of this command"),
    ],
)  # fmt: skip
def test_files_of_another_kind(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    [found] = problems(str(path), SHARDS)
    assert line in found


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("epochs", "optim.epochs"),
        ("batch_size", "optim.batch_size"),
        ("num_workers", "data.workers"),
        ("output_dir", "run.dir"),
        ("seed", "run.seed"),
        ("img_size", "data.image_size"),
        ("backbone", "encoder.name"),
        ("checkpoint", "encoder.init"),
        ("mask_ratio", "corruption.ratio or corruption.mask_ratio"),
        ("data_path", "data.shards"),
        ("bf16", "run.precision (fp32, bf16, fp16)"),
        ("warmup", "optim.warmup_ratio"),
        ("wd", "optim.weight_decay"),
        ("num_heads", "encoder.num_heads or decoder.num_heads"),
        ("--optim.lr", "optim.lr"),
    ],
)
def test_usual_names_are_known(name: str, meant: str) -> None:
    assert problems(SHARDS, f"{name}=1") == [f"{name} is no key; did you mean {meant}?"]


def test_every_hint_is_a_key() -> None:
    kinds = (PretrainConfig, ViltConfig, FinetuneConfig, FewshotConfig, LinearConfig)
    known = {key.name for kind in kinds for key in keys(kind)}
    known |= {name.split(".")[-1] for name in known}
    for target in _USUAL.values():
        names = (target,) if isinstance(target, str) else target
        assert {name.split(" ")[0] for name in names} <= known, target


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
    of_the_model = {n for n in free if n.startswith(("optim.", "corruption.", "encoder."))}
    assert of_the_model == {"encoder.patch_embed"}  # its outputs are equal
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
