"""A user's mistake is one clear line, and costs nothing that was there before."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import finetune.fewshot
import finetune.run
import pretrain.run
from data.settings import UserError, run_entry_point
from data.shards import ImageFile, write_shard

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_"))}

Main = Callable[[list[str]], None]


def refusal(main: Main, arguments: list[str]) -> str:
    """Return the one line with which an entry point refuses its arguments."""
    with pytest.raises(UserError) as caught:
        main(arguments)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# ---------------------------------------------------------------- before anything is written


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        # keys
        ("optim.stepz=3", "optim.stepz is no key; did you mean optim.steps?"),
        ("run.lr=3", "run.lr is no key; did you mean optim.lr?"),
        ("lr=3", "lr is no key; did you mean optim.lr?"),
        ("optim.learning_rate=3", "optim.learning_rate is no key; did you mean optim.lr?"),
        ("foo=3", "foo is no key; see --help"),
        ("run.seed", "run.seed is not of the form key.sub=value; see --help"),
        ("=3", "=3 is not of the form key.sub=value; see --help"),
        ("optim.betas=[0.9", "optim.betas=[0.9 cannot be read"),
        # types
        ("run.seed=1.5", "run.seed=1.5 is no int; see --help"),
        ("optim.lr=fast", "optim.lr=fast is no float; see --help"),
        ("data.trace=maybe", "data.trace=maybe is no bool; write true or false"),
        ("optim.betas=[0.9]", "optim.betas=[0.9] is no tuple[float, float]; it takes 2 values"),
        ("data.mean=[a,b,c]", "data.mean=['a', 'b', 'c'] is no tuple[float, ...]"),
        ("optim.steps=${nothing}", "optim.steps=${nothing}: nothing is no key with a value"),
        # ranges
        ("optim.lr=-1", "optim.lr=-1.0 is not a number from 0"),
        ("optim.lr=nan", "optim.lr=nan is not a number from 0"),
        ("optim.steps=0", "optim.steps=0 must be above 0"),
        ("optim.warmup_steps=41", "optim.warmup_steps=41 is over optim.steps=40; give"),
        ("optim.algorithm=adam", "optim.algorithm=adam is not one of adamw, sgd"),
        ("optim.layer_decay=0", "optim.layer_decay=0.0 is not in (0, 1]; 1 is off"),
        ("optim.ema=1", "optim.ema=1.0 is not in [0, 1)"),
        ("run.seed=99999999999999999999", "is not in 0..2^63-1"),
        ("run.log_every=0", "run.log_every=0 must be above 0"),
        ("run.precision=fp8", "run.precision=fp8 is not one of fp32, bf16, fp16"),
        ("run.bf16_residual=true", "run.bf16_residual=true goes with run.precision=bf16"),
        ("run.resume=maybe", "run.resume=maybe is not one of auto, must, never"),
        ("data.crop_area=[0.4,2]", "data.crop_area=[0.4, 2.0] is no range within (0, 1]"),
        ("data.std=[0,1,1]", "data.std=(0.0, 1.0, 1.0) must be above 0 in each channel"),
        ("data.workers=-1", "data.workers=-1 is below 0; 0 needs no process"),
        ("data.resident=maybe", "data.resident=maybe is neither auto, true nor false"),
        ("corruption.ratio=1.5", "corruption.ratio=1.5 is not in 0..1"),
        ("corruption.ratio=0.01", "corruption.ratio=0.01 corrupts none of 16 patches; raise it"),
        ("corruption.random_ratio=0.3", "corruption.random_ratio = 1.1 is over 1"),
        ("target.bits=9", "target.bits=9 is not in 1..8; the paper has 3"),
        # sizes
        ("data.image_size=225", "225 is not a multiple of encoder.patch_size=4; try 224"),
        ("data.image_size=[16,18]", "18 is not a multiple of encoder.patch_size=4; try 16"),
        ("data.image_size=big", "data.image_size=big is no size; give pixels, or [height, width]"),
        ("run.micro_batch_size=3", "run.micro_batch_size=3 does not divide the 8 images that each"),
        # the encoder
        ("encoder.name=vit_tiny_patch16_223", "did you mean vit_tiny_patch16_224?"),
        ("encoder.name=resnet50", "encoder.name=resnet50 is no VisionTransformer that timm knows"),
        ("encoder.num_heads=3", "timm says: dim should be divisible by num_heads"),
        ("decoder.depth=2", "has no effect with encoder.sees_masked=true; set it to false"),
        ("encoder.args.foo=3", "got an unexpected keyword argument 'foo'"),
        ("encoder.args.norm_layer=foo", "timm says: 'foo'"),
        ("encoder.args.num_classes=3", "num_classes is set by this project; leave it out"),
        ("encoder.init=nothing", "encoder.init=nothing is no run or folder with an encoder"),
        # shards
        ("data.shards=null", "data.shards is missing; name a folder of images, as in "),
        ("data.shards=nothing/*.tar", "nothing/*.tar matches no file; correct the pattern"),
        ("data.shards=nothing.tar", "nothing.tar does not exist; correct the path or the pattern"),
        ("data.val_shards=nothing.tar", "the pattern, or give data.val_shards=none to do without"),
        ("data.shards=3", "/3 does not exist; correct the path or the pattern"),
        # the run's folder
        ("run.resume=must", "has no whole checkpoint; use run.resume=auto to start again"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, tiny: list[str], argument: str, text: str
) -> None:
    assert text in refusal(pretrain.run.main, [*tiny, f"run.dir={tmp_path}/run", argument])
    assert not (tmp_path / "run").exists()


def test_fp16_needs_a_gpu(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = [*tiny, f"run.dir={tmp_path}/run", "run.precision=fp16"]
    text = refusal(pretrain.run.main, arguments)
    assert text == "run.precision=fp16 needs a GPU; use fp32 or bf16 on a CPU"


def test_a_file_that_is_no_tar(tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "a.tar").write_bytes(b"these are words " * 100)
    text = refusal(pretrain.run.main, [*tiny, f"data.shards={tmp_path}", f"run.dir={tmp_path}/run"])
    assert text == (
        "data.shards: shard a.tar is not a tar file but a text file; name only tar files, or make "
        "shards with python scripts/make_shards.py SOURCE OUT"
    )
    assert not (tmp_path / "run").exists()


def test_shards_without_samples(tmp_path: Path, tiny: list[str]) -> None:
    write_shard(tmp_path / "a.tar", [])
    text = refusal(pretrain.run.main, [*tiny, f"data.shards={tmp_path}", f"run.dir={tmp_path}/run"])
    assert text == "data.shards: the shards hold no samples; name others"


def test_a_run_dir_that_is_a_file(tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "run").write_text("mine")
    text = refusal(pretrain.run.main, [*tiny, f"run.dir={tmp_path}/run"])
    remedy = "there is a file of that name: choose another name"
    assert text == f"run.dir={tmp_path}/run cannot be written: File exists; {remedy}"
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("run: {seed: 1\noptim: 3\n", "is not valid YAML: while parsing"),
        ("run:\n  seed: 1\n  seed: 2\n", "seed is there twice, in lines 2 and 3"),
        ("- run\n", "must hold keys and values"),
        ("run:\n  sed: 1\n", "run.sed is no key; did you mean run.seed?"),
        ("run:\n  seed: one\n", "run.seed=one is no int"),
        ("optim:\n  betas: [1]\n  lr: 1\n", "optim.betas=[1] is no tuple[float, float]"),
        ("\udcff\udcfe", "is not valid YAML: 'utf-8' codec can't decode"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, tiny: list[str], content: str, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert text in refusal(pretrain.run.main, [str(path), *tiny])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing.yaml", "missing.yaml: no such configuration file; see configs/"),
        ("--steps", "--steps is neither a CONFIG.yaml nor key.sub=value; see --help"),
    ],
)
def test_a_file_that_is_missing(tiny: list[str], name: str, text: str) -> None:
    assert refusal(pretrain.run.main, [name, *tiny]) == text


def test_a_recipe_that_is_named_from_another_folder(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/pretrain/small.yaml"
    text = f"{name}: no such configuration file; did you mean {ROOT / name}?"
    assert refusal(pretrain.run.main, [name, *tiny]) == text


def test_images_in_place_of_a_configuration(tiny: list[str], tmp_path: Path) -> None:
    text = f"{tmp_path} is neither a CONFIG.yaml nor key.sub=value; name images by a key, as in "
    told = refusal(pretrain.run.main, [str(tmp_path), *tiny])
    assert told == f"{text}data.shards={tmp_path}"


# ---------------------------------------------------------------- a run that is there


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    run = tmp_path_factory.mktemp("errors") / "run"
    pretrain.run.main([*tiny, "optim.steps=8", f"run.dir={run}"])
    return run


def test_a_run_in_place_of_its_configuration(finished: Path, tiny: list[str]) -> None:
    text = refusal(pretrain.run.main, [str(finished), *tiny])
    assert text == (
        f"{finished} is the folder of a run; its configuration is {finished}/config.yaml"
    )


@pytest.mark.parametrize(
    ("more", "texts"),
    [
        (["optim.lr=1", "run.seed=3"], ["run.seed was 0, now 3; optim.lr was 0.002, now 1.0"]),
        (["encoder.embed_dim=64"], ["encoder.embed_dim was 32, now 64"]),
        (["data.image_size=32"], ["data.image_size was [16, 16], now [32, 32]"]),
        (["encoder.sees_masked=false"], ["encoder.sees_masked was true, now false"]),
        (["encoder.position=learned_2d"], ["encoder.position was null, now learned_2d"]),
        (["run.resume=never"], ["has checkpoints; use another run.dir"]),
    ],
)
def test_another_run_in_the_folder_is_left_alone(
    finished: Path, tiny: list[str], more: list[str], texts: list[str]
) -> None:
    before = contents(finished)
    text = refusal(pretrain.run.main, [*tiny, "optim.steps=8", f"run.dir={finished}", *more])
    assert f"run.dir={finished}" in text
    assert all(part in text for part in texts)
    assert "another run.dir" in text
    assert contents(finished) == before


def test_other_shards_are_refused_by_their_content(
    tmp_path: Path, finished: Path, tiny: list[str], shards: Path
) -> None:
    before = contents(finished)
    arguments = [*tiny, "optim.steps=8", f"run.dir={finished}"]
    text = refusal(pretrain.run.main, [*arguments, f"data.shards={shards}/train-[01].tar"])
    assert "was trained on another stream: content of the shards" in text
    assert text.endswith("or another run.dir")
    after = contents(finished)
    assert {name for name in before if after[name] != before[name]} <= {"config.yaml"}


def test_a_checkpoint_of_another_encoder(tmp_path: Path, finished: Path, tiny: list[str]) -> None:
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("embed_dim: 32", "embed_dim: 64"))
    arguments = [*tiny, "optim.steps=8", f"run.dir={tmp_path}/run", "encoder.embed_dim=64"]
    text = refusal(pretrain.run.main, arguments)
    assert "holds another encoder or head than the configuration" in text
    assert "mask_token" in text


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("encoder.embed_dim=64", "encoder.embed_dim=64, but the encoder of encoder.init={} has 32"),
        ("encoder.depth=3", "encoder.depth=3, but the encoder of encoder.init={} has 2"),
        ("encoder.name=vit_base_patch16_224", "but the encoder of encoder.init={} is a vit_tiny_p"),
    ],
)
def test_an_encoder_that_is_not_what_is_asked_for(
    tmp_path: Path, finished: Path, tiny: list[str], argument: str, text: str
) -> None:
    arguments = [*tiny, f"encoder.init={finished}", argument, f"run.dir={tmp_path}/run"]
    found = refusal(pretrain.run.main, arguments)
    assert text.format(finished) in found
    assert found.endswith("leave the key out")
    assert not (tmp_path / "run").exists()


def test_a_run_without_an_encoder_yet(tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "run").mkdir()
    arguments = [*tiny, f"encoder.init={tmp_path}/run", f"run.dir={tmp_path}/other"]
    assert refusal(pretrain.run.main, arguments) == (
        f"encoder.init={tmp_path}/run is no run or folder with an encoder, and no timm name; "
        "a run has its first encoder after its first checkpoint"
    )


# ---------------------------------------------------------------- fine-tuning


def write_labels(path: Path, labels: list[int | None]) -> Path:
    write_shard(path, [ImageFile(f"{i:03d}", "png", b"", k) for i, k in enumerate(labels)])
    return path


@pytest.mark.parametrize("main", [finetune.run.main, finetune.fewshot.main])
def test_fine_tuning_needs_both_splits(shards: Path, encoder: list[str], main: Main) -> None:
    assert refusal(main, encoder) == (
        "data.train is missing; name a folder with one folder a class, or labelled shards, such as "
        "data.train='shards/train-*.tar'"
    )
    text = refusal(main, [*encoder, f"data.train={shards}/train-*.tar"])
    assert text.startswith("data.val is missing")


def test_an_image_without_a_label_is_named(tmp_path: Path, tiny_finetune: list[str]) -> None:
    shard = write_labels(tmp_path / "a.tar", [0, 1, None, 2])
    arguments = [*tiny_finetune, f"data.train={shard}", f"run.dir={tmp_path}/run"]
    assert refusal(finetune.run.main, arguments) == (
        "data.train: a.tar/002: no .cls member; "
        "each sample needs a class number from 0 beside its image"
    )
    assert not (tmp_path / "run").exists()


def test_a_class_that_training_lacks_is_named(tmp_path: Path, tiny_finetune: list[str]) -> None:
    shard = write_labels(tmp_path / "a.tar", [0, 1, 7])
    arguments = [*tiny_finetune, f"data.val={shard}", f"run.dir={tmp_path}/run"]
    assert refusal(finetune.run.main, arguments) == (
        "data.val has class [7], which data.train lacks; train on all classes that are validated"
    )


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("fewshot.shots=[1,50]", "fewshot.shots has 50, but class 0 of data.train has only 12"),
        ("fewshot.shots=[0]", "fewshot.shots=[0] must be numbers from 1; try [1, 5, 10, 25]"),
        ("fewshot.layers=[1,3]", "fewshot.layers=3 is not in 1..2, the encoder's blocks"),
        ("fewshot.poolings=[max]", "fewshot.poolings=max is not one of average, class, both"),
        ("head.lr=1", "head.lr is a key of finetune/run.py, not of this command"),
    ],
)
def test_few_shot_mistakes(shards: Path, encoder: list[str], argument: str, text: str) -> None:
    data = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-0.tar", "data.workers=0"]
    assert text in refusal(finetune.fewshot.main, [*encoder, *data, argument])


# ---------------------------------------------------------------- as a process


def fail(command: list[str]) -> tuple[int, list[str]]:
    """Run what must fail; return its status and what stands on stderr."""
    result = subprocess.run(command, cwd="/", env=ENVIRONMENT, capture_output=True, text=True)
    assert result.stdout == ""
    assert "Warning" not in result.stderr
    return result.returncode, result.stderr.splitlines()


def test_an_entry_point_leaves_with_status_2_and_one_line(tmp_path: Path, tiny: list[str]) -> None:
    script = str(ROOT / "pretrain/run.py")
    arguments = [*tiny, f"run.dir={tmp_path}/run", "optim.stepz=3"]
    status, lines = fail([sys.executable, script, *arguments])
    assert status == 2
    assert lines == ["error: optim.stepz is no key; did you mean optim.steps?"]


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (["optim.batch_size=9"], "optim.batch_size=9 is not a multiple of the 2 processes; try 8"),
        (
            ["run.compile=true", "run.cuda_graphs=true"],
            "run.cuda_graphs=true is for one process, and there are 2; leave it out",
        ),
    ],
)
def test_two_ranks_say_it_once(
    keys: list[str], error: str, tmp_path: Path, tiny: list[str]
) -> None:
    launcher = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    arguments = [*tiny, f"run.dir={tmp_path}/run", *keys]
    status, lines = fail([*launcher, str(ROOT / "pretrain/run.py"), *arguments])
    assert status != 0
    text = f"error: {error}"
    assert [line for line in lines if line.startswith("error")] == [text]
    ours = lines[: lines.index(text)]  # what follows is the launcher's
    assert not [line for line in ours if "Traceback" in line]
    assert not (tmp_path / "run").exists()


def test_a_keyboard_interrupt_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_entry_point(interrupted)
    assert caught.value.code == 130
    assert capsys.readouterr().err == ""


def test_only_the_first_rank_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: list[str]) -> None:
        raise UserError("no")

    for rank, text in (("0", "error: no\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as caught:
            run_entry_point(refuse)
        assert (caught.value.code, capsys.readouterr().err) == (2, text)
