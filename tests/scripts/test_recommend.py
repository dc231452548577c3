"""Recipes: the rules on a table of situations, what is seen of images, and files that train."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pretrain.run
from data.commands import how_to_type
from data.images.channels import held_channels
from data.settings import UserError
from data.shards import ImageFile, write_shard
from pretrain.config import PretrainConfig
from scripts._recommend.choosing import MOST_PASSES, Recipe, choose_size, fit
from scripts._recommend.facts import Images, Labelled, Machine, Timing
from scripts._recommend.labels import look_at_labels
from scripts._recommend.looking import count_near, look
from scripts._recommend.plan import make_plan
from scripts._recommend.sizes import SIZES, Size
from scripts._recommend.telling import better, instead, length_line, then, warnings
from scripts._recommend.values import choices
from scripts._recommend.writing import load_choices
from scripts.recommend import main
from tests.conftest import make_png

GIB = 2**30
LAPTOP = Machine("cpu", "a CPU", 0, 2, 2, 16 * GIB, has_bf16=False)
ONE_GPU = Machine("cuda", "a GPU", 1, 16, 16, 24 * GIB, has_bf16=True)
EIGHT_GPUS = Machine("cuda", "an H100", 8, 128, 128, 80 * GIB, has_bf16=True)
PHOTOS = Images(
    spec="photos",
    num_images=200,
    num_looked=200,
    num_bad=0,
    first_bad="",
    height=375,
    width=500,
    widths_apart=1.9,
    channels=3,
    is_grey=False,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    white=255,
    num_near=0,
    num_equal=0,
    decode_seconds=0.003,
    num_val=0,
)
TINY = replace(PHOTOS, num_images=50_000, num_looked=300, height=32, width=32, widths_apart=1)
MANY = replace(PHOTOS, num_images=100_000, num_looked=300)
MILLIONS = replace(PHOTOS, num_images=5_000_000, num_looked=300)
SCANS = replace(
    MANY, channels=1, is_grey=True, mean=(0.1,), std=(0.1,), white=15, height=512, width=512
)
BANDS = replace(
    MANY, channels=13, mean=(0.5,) * 13, std=(0.2,) * 13, height=64, width=64, widths_apart=1
)
STRIPS = replace(TINY, height=40, width=300)


def recommended(
    images: Images, machine: Machine, hours: float = 8, labels: Labelled | None = None
) -> tuple[Recipe, PretrainConfig]:
    """Recommend on a machine that does 1e11 operations a second, each GPU a thousand times that."""
    chosen = make_plan(images, machine, labels)

    def measure(size: Size) -> Timing:
        # three quarters are hidden; forward and backward
        flops = 6 * size.parameters * (chosen.grid.num_patches / 4)
        each = 1e11 * (1000 if machine.num_gpus else 1)
        seconds = chosen.batch / machine.num_ranks * flops / each
        return Timing(seconds, 0.01, 18.0, GIB, chosen.batch // machine.num_ranks)

    size, measured = choose_size(chosen, hours, measure)
    timing = measured[size.name]
    assert timing is not None
    recipe = fit(chosen, size, timing, hours)
    return recipe, load_choices(choices(recipe))


# ---------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("images", "machine", "size", "image_size", "patch", "batch"),
    [
        (PHOTOS, LAPTOP, "tiny, 4 blocks", 128, 16, 32),
        (TINY, LAPTOP, "ViT-Ti", 32, 4, 128),
        (MANY, ONE_GPU, "ViT-B", 224, 16, 1024),
        (MILLIONS, EIGHT_GPUS, "ViT-L", 224, 16, 4096),
        (SCANS, ONE_GPU, "ViT-B", 224, 16, 1024),
        (BANDS, LAPTOP, "ViT-Ti", 64, 8, 128),
        (STRIPS, LAPTOP, "ViT-Ti", [42, 294], 14, 128),
    ],
    ids=["photos", "tiny", "many", "millions", "scans", "bands", "strips"],
)
def test_situations(
    images: Images, machine: Machine, size: str, image_size: object, patch: int, batch: int
) -> None:
    recipe, config = recommended(images, machine)
    assert recipe.size.name == size
    assert config.data.image_size == image_size
    assert (config.encoder.patch_size, config.optim.batch_size) == (patch, batch)
    assert config.data.channels == images.channels == len(config.data.mean or ())
    assert config.target.kind == "words"
    assert not config.encoder.sees_masked
    assert config.run.precision == ("bf16" if machine.has_bf16 else "fp32")
    assert 0 < config.optim.num_warmup_steps < config.optim.num_steps
    assert recipe.length.seconds <= 8 * 3600


def test_few_images_are_not_looked_at_for_ever() -> None:
    recipe, config = recommended(PHOTOS, LAPTOP, hours=100)
    assert not recipe.length.is_by_hours
    assert recipe.length.passes == MOST_PASSES
    assert config.optim.steps == MOST_PASSES * 7  # 200 images in batches of 32
    assert recipe.length.seconds < 100 * 3600 / 2


def test_more_hours_take_a_larger_encoder_and_never_a_smaller_one() -> None:
    sizes = [SIZES.index(recommended(TINY, LAPTOP, hours)[0].size) for hours in (0.1, 1, 8, 80)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_the_rate_falls_with_the_width_and_grows_with_the_batch() -> None:
    small, large = (recommended(TINY, LAPTOP, hours)[1].optim.lr for hours in (0.05, 8))
    assert small == 2e-3  # as configs/pretrain/cifar10.yaml
    assert large == pytest.approx(2e-3 * 2 / 3, rel=0.03)  # width 192
    base = recommended(replace(MILLIONS, num_images=900_000), EIGHT_GPUS)[1]
    assert base.optim.lr == pytest.approx(2e-3 * 128 / 768 * (1024 / 128) ** 0.5, rel=0.05)


def test_what_does_not_fit_is_left_for_a_smaller_one() -> None:
    chosen = make_plan(MANY, ONE_GPU)
    asked: list[str] = []

    def measure(size: Size) -> Timing | None:
        asked.append(size.name)
        return Timing(0.01, 0, 1, GIB, 1024) if size.width < 384 else None

    size, _ = choose_size(chosen, 8, measure)
    assert size.name == "ViT-Ti"
    assert asked == ["ViT-S", "ViT-Ti"]
    with pytest.raises(UserError, match=r"not even tiny, 4 blocks \(0\.8 M .* end other"):
        choose_size(chosen, 8, lambda _: None)


def test_a_time_for_no_steps_is_refused_with_one_that_suffices() -> None:
    with pytest.raises(UserError, match=r"--hours=0\.001 is too short: .*try --hours") as error:
        recommended(TINY, LAPTOP, hours=0.001)
    enough = float(str(error.value).rpartition(" ")[2])
    assert recommended(TINY, LAPTOP, hours=enough)[0].length.steps >= 50


def test_images_too_small_to_be_masked_are_refused() -> None:
    with pytest.raises(UserError, match="are 4 x 4 pixels, too small"):
        make_plan(replace(TINY, height=4, width=4), LAPTOP)


def test_words_are_fewer_than_patches() -> None:
    assert make_plan(replace(PHOTOS, num_images=3), LAPTOP).num_words == 48
    assert recommended(replace(PHOTOS, num_images=3), LAPTOP)[1].target.num_words == 48


def test_weights_decide_the_encoder_and_the_patch() -> None:
    weights = Size("dino", "dino", 384, 12, 6, 0, 14)
    chosen = make_plan(PHOTOS, LAPTOP, start=weights)
    size, measured = choose_size(chosen, 8, lambda _: Timing(0.1, 0, 1, GIB, 32))
    assert list(measured) == ["dino"]
    config = load_choices(choices(fit(chosen, size, Timing(0.1, 0, 1, GIB, 32), 8)))
    assert (config.encoder.init, config.encoder.name, config.encoder.patch_size) == (
        "dino",
        None,
        None,
    )
    assert config.data.image_size == 112  # 8 x 8 patches of 14
    assert config.data.mean is None
    assert config.optim.lr == pytest.approx(2e-3 / 3 / 2 / 4, rel=0.03)


def test_validation_images_are_set_aside_where_there_are_enough() -> None:
    assert recommended(PHOTOS, LAPTOP)[1].data.val_ratio == 0
    recipe, config = recommended(TINY, LAPTOP)
    assert config.data.val_ratio == recipe.plan.val_ratio == 0.02
    assert recipe.plan.num_val == 1_000
    assert recipe.plan.pass_steps == 383  # 49,000 images in batches of 128
    assert config.run.eval_every * 10 >= config.optim.num_steps
    own = recommended(replace(TINY, num_val=10), LAPTOP)[1]
    assert (own.data.val_ratio, own.data.val_shards) == (0, "photos")


def test_labels_without_validation_images_are_split_by_the_next_command() -> None:
    labels = Labelled("by class", None, None, 30, 0, 3, 7, 11)
    assert then(labels).endswith(
        " configs/finetune/small.yaml encoder.init=runs/mine 'data.train=by class' "
        "data.val_ratio=0.2"
    )
    split = replace(labels, train=["a.tar", "b.tar"], val="c.tar")
    assert then(split).endswith(" 'data.train=[a.tar,b.tar]' data.val=c.tar")


def test_a_batch_divides_among_gpus() -> None:
    six = replace(EIGHT_GPUS, num_gpus=6)
    assert make_plan(MANY, six).batch % 6 == 0
    assert make_plan(replace(TINY, num_images=5), LAPTOP).batch == 4


def test_labels_become_a_probe_that_takes_a_tenth_of_the_time_at_most() -> None:
    labels = Labelled("l", ["a.tar"], ["b.tar"], 30, 12, 3, 7, 11)
    recipe, config = recommended(TINY, LAPTOP, labels=labels)
    assert (config.probe.train, config.probe.val) == (["a.tar"], ["b.tar"])
    assert config.probe.shots == (1, 5)  # a class has seven
    assert config.probe.every * 10 >= recipe.length.steps
    assert recipe.length.seconds <= 8 * 3600
    recipe, config = recommended(TINY, LAPTOP, labels=replace(labels, num_train=10**6))
    assert config.probe.every == 0
    assert recipe.length.seconds <= 8 * 3600


def test_what_is_doubtful_is_said() -> None:
    def said(images: Images) -> str:
        return "\n".join(warnings(recommended(images, LAPTOP)[0], None))

    assert said(TINY) == ""
    assert "brightest value is 15 of 255" in said(SCANS)
    assert "every 10th of a film" in said(replace(TINY, num_near=150))
    assert said(replace(TINY, num_images=5)) == "5 images: an encoder hardly learns from so few"
    assert "10.0 % cannot be read" in said(replace(TINY, num_bad=30))


def test_released_weights_come_first_for_few_photographs_alone() -> None:
    assert "take released weights first" in instead(PHOTOS)
    assert "better than any run of hours" in instead(MANY)
    assert "pretraining of your own" in instead(BANDS)


def test_nothing_is_promised_that_the_images_do_not_hold() -> None:
    tiny, few, many = (better(recommended(each, LAPTOP)[0]) for each in (TINY, PHOTOS, MANY))
    assert "larger encoders" in tiny
    assert "224 pixels" not in tiny
    assert "larger encoders" not in few
    assert "images of 224 pixels" in few
    assert "larger encoders, images of 224 pixels" in many
    assert "GPU" not in better(recommended(MANY, ONE_GPU)[0])


def test_the_length_is_told_in_passes() -> None:
    assert re.search(
        r"^[\d,]+ steps of 32 images = 1,600 passes over the images, about .* beyond 1,600 passes",
        length_line(recommended(PHOTOS, LAPTOP, hours=100)[0]),
    )
    assert "the hours decided" in length_line(recommended(TINY, LAPTOP)[0])


# ---------------------------------------------------------------- what is seen


def png(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def shard(path: Path, images: list[tuple[str, bytes]]) -> str:
    samples = [ImageFile(f"{n:04d}", kind, data) for n, (kind, data) in enumerate(images)]
    write_shard(path, samples)
    return str(path)


def test_a_shard_is_looked_at(shards: Path) -> None:
    images = look(f"{shards}/train-*.tar")
    assert (images.num_images, images.num_looked, images.num_bad) == (36, 36, 1)
    assert images.first_bad.startswith("train-1.tar/022: ")
    assert (images.height, images.width, images.channels) == (24, 20, 3)
    assert images.num_val == 0


def test_the_validation_split_of_a_folder_is_counted(shards: Path) -> None:
    assert look(str(shards)).num_val == 10


def test_duplicates_are_counted(tmp_path: Path) -> None:
    one, two = make_png(1, (64, 48)), make_png(2, (64, 48))
    pixels = np.asarray(Image.open(io.BytesIO(one))).copy()
    pixels[5, 5] = 0
    images = look(shard(tmp_path / "a.tar", [("png", data) for data in (one, png(pixels), two)]))
    assert (images.num_near, images.num_equal) == (2, 0)
    images = look(shard(tmp_path / "b.tar", [("png", data) for data in (one, one, two)]))
    assert (images.num_near, images.num_equal) == (2, 2)


def test_a_folder_is_looked_at(tmp_path: Path) -> None:
    for number, seed in enumerate((1, 1, 2)):
        (tmp_path / f"{number}.png").write_bytes(make_png(seed))
    (tmp_path / "3.png").write_bytes(b"no image")
    images = look(str(tmp_path))
    assert (images.num_images, images.num_bad, images.num_equal, images.num_val) == (4, 1, 2, 0)


def test_pictures_of_one_shape_and_other_brightness_are_no_duplicates() -> None:
    bright = np.tile(np.linspace(100, 250, 17, dtype=np.float32), (16, 1))
    assert count_near([bright, bright - 90]) == 0
    assert count_near([bright, bright - 4]) == 2


def test_grey_images_of_16_bits_are_seen(tmp_path: Path) -> None:
    scan = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    images = look(shard(tmp_path / "a.tar", [("png", png(scan))]))
    assert images.is_grey
    assert (images.channels, len(images.mean), images.white) == (1, 1, 15)


def test_grey_images_stored_as_colour_are_seen(tmp_path: Path) -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    images = look(shard(tmp_path / "a.tar", [("png", png(grey))]))
    assert images.is_grey
    assert images.channels == 1


def test_channels_of_arrays_are_seen(tmp_path: Path) -> None:
    bands = np.zeros((20, 24, 13), np.uint8)
    images = look(shard(tmp_path / "a.tar", [("npy", npy(bands))]))
    assert (images.channels, images.height, images.width) == (13, 20, 24)


def test_held_channels() -> None:
    assert held_channels(npy(np.zeros((4, 5), np.uint8))) == 1
    assert held_channels(png(np.zeros((4, 5, 3), np.uint8))) == 3
    assert held_channels(png(np.zeros((4, 5), np.uint8))) == 1
    assert held_channels(b"no image") == 3
    pages = io.BytesIO()
    page = Image.new("L", (5, 4))
    page.save(pages, "TIFF", save_all=True, append_images=[page, page])
    assert held_channels(pages.getvalue()) == 3
    pages = io.BytesIO()
    page.save(pages, "TIFF", save_all=True, append_images=[page] * 4)
    assert held_channels(pages.getvalue()) == 5


def test_nothing_that_can_be_used_is_one_line(tmp_path: Path) -> None:
    spec = shard(tmp_path / "a.tar", [("png", b"no image")] * 2)
    with pytest.raises(UserError, match=r"none of the 2 images looked at .*a\.tar/0000: no image"):
        look(spec)


def test_labels_are_split(shards: Path, tmp_path: Path) -> None:
    labels = look_at_labels(str(shards))
    assert (labels.train, labels.val) == (str(shards), str(shards))
    assert (labels.num_train, labels.num_val, labels.num_classes) == (36, 10, 3)
    labels = look_at_labels(f"{shards}/train-*.tar")
    assert labels.val == [f"{shards}/train-2.tar"]
    assert (labels.num_train, labels.num_val) == (27, 9)
    assert look_at_labels(f"{shards}/val-0.tar").train is None
    with pytest.raises(UserError, match=r"^LABELLED: .*nowhere does not exist"):
        look_at_labels(f"{shards}/nowhere")
    folder = tmp_path / "flat"
    folder.mkdir()
    (folder / "0.png").write_bytes(make_png(0))
    with pytest.raises(UserError, match=r"^LABELLED=.*flat has no labels, as images lie in no fol"):
        look_at_labels(str(folder))


# ---------------------------------------------------------------- the script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hours", "0"], "--hours=0 is no time above 0"),
        (["--hours", "-1"], "--hours=-1 is no time above 0"),
        (["--hours", "nan"], "--hours=nan is no time above 0"),
        (["--hours", "soon"], "argument --hours: invalid float value: 'soon'"),
        (["--out", "recipe.txt"], "--out=recipe.txt is read by its ending"),
        (["--out", "nowhere/recipe.yaml"], "there is no folder nowhere"),
        (["--out", "old.yaml"], "old.yaml is there already"),
        ([], "IMAGES: "),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").touch()
    with pytest.raises(UserError) as error:
        main(["images", *arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_there_are_named_as_they_were_typed(shards: Path) -> None:
    with pytest.raises(UserError, match=r"^--init=nonsense is no run or folder with an encoder"):
        main([str(shards), "--init", "nonsense"])


@pytest.mark.slow
def test_the_recipe_trains(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recipe.yaml"
    main([str(shards), "--hours", "0.02", "--labels", f"{shards}/train-*.tar", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert lines[0].startswith("images    36 images, 20 x 24 pixels (median), colour")
    assert f"next      {how_to_type('pretrain')} {out}" in lines
    then = f"{how_to_type('finetune')} configs/finetune/small.yaml encoder.init=runs/mine"
    assert f" {then} 'data.train=[" in " ".join(" ".join(lines).split())
    assert "labels    36 labelled images of 3 classes, 9 to 9 images each" in lines
    head = " ".join(line.removeprefix("#").strip() for line in out.read_text().splitlines())
    assert head.startswith(f"A recipe for {shards}, made by")
    weights = "vit_small_patch14_dinov2.lvd142m"
    assert f"command: {how_to_type('pretrain')} {out} " in head
    assert f"from:    {how_to_type('recommend')} {shards} --init {weights} " in head
    short = ["optim.steps=2", "optim.warmup_steps=1", f"run.dir={tmp_path}/run"]
    pretrain.run.main([str(out), *short, "data.workers=0", "data.max_bad_ratio=1"])
    assert (tmp_path / "run/encoder/model.safetensors").exists()
