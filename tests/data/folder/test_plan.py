"""From a folder of images to the plan of its shards."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from data.folder.images import list_images
from data.folder.plan import (
    PlanOptions,
    SourceImage,
    load_samples,
    plan_hash,
    plan_shards,
    take_images,
    unique_keys,
)
from data.labels.classes import parse_classes
from data.settings import UserError
from data.shards import split_name, write_shard

OPTIONS = PlanOptions(shard_bytes=100_000, val_ratio=0.25, shuffle=True, seed=0)
IMAGES = [SourceImage(f"c/{i:04d}.jpg", f"c/{i:04d}", 900, 0) for i in range(400)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name in ("dog/b.v2.JPG", "cat/deep/a.png", "cat/a.jpg", "cat/notes.txt", ".git/x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "cat" / "empty.jpg").touch()
    return folder


def test_the_first_folder_is_the_class(source: Path) -> None:
    found = take_images(list_images(source))
    assert found.classes == ("cat", "dog")
    assert [(image.path, image.key, image.label) for image in found.images] == [
        ("cat/a.jpg", "cat/a", 0),
        ("cat/deep/a.png", "cat/deep/a", 0),
        ("dog/b.v2.JPG", "dog/b_v2", 1),
    ]
    assert found.left_out == (
        "1 empty file (cat/empty.jpg)",
        "1 file that is no image (1 .txt: cat/notes.txt)",
        "1 hidden name (.git)",
    )


def test_no_labels_by_option_or_by_an_image_in_the_source_itself(source: Path) -> None:
    assert take_images(list_images(source), is_unlabelled=True).classes == ()
    (source / "z.gif").write_bytes(b"z")
    found = take_images(list_images(source))
    assert found.classes == ()
    assert [image.label for image in found.images] == [None] * 4


def test_sources_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"SOURCE=.* holds no image that can be read: there is no file; known"
    ):
        take_images(list_images(tmp_path))


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


# ---------------------------------------------------------------- folders as classes


def test_labels_do_not_shift_where_a_class_would_be_lost(tmp_path: Path) -> None:
    """By broken links, empty files or a broken link in place of its folder: refused by name."""
    source = put(tmp_path, "ant/a.jpg", "cat/b.jpg")
    (source / "bee").mkdir()
    (source / "bee/x.jpg").symlink_to("nothing")
    lost = r"the class bee would be lost, as none of its images can be read \(bee/x.jpg\); mend"
    with pytest.raises(UserError, match=lost):
        take_images(list_images(source))
    assert len(take_images(list_images(source), is_unlabelled=True).images) == 2
    put(source, "bee/y.jpg")
    found = take_images(list_images(source))
    assert found.classes == ("ant", "bee", "cat")
    assert found.left_out == ("1 broken link (bee/x.jpg)",)
    (source / "dog").symlink_to("nothing")
    with pytest.raises(UserError, match=r"the class dog would be lost, .*\(dog\)"):
        take_images(list_images(source))
    (source / "dog").unlink()
    (source / "stray.jpg").symlink_to("nothing")  # an image's name: it would be no class
    assert take_images(list_images(source)).classes == ("ant", "bee", "cat")
    (source / "eel").mkdir()
    (source / "eel/z.png").touch()
    with pytest.raises(UserError, match="the class eel would be lost"):
        take_images(list_images(source))


def test_an_empty_folder_is_no_class_and_named(tmp_path: Path) -> None:
    source = put(tmp_path, "ant/a.jpg", "docs/readme.txt")
    (source / "cat").mkdir()
    assert take_images(list_images(source)).left_out[-1] == (
        "2 folders without images, so no classes (cat, docs)"
    )


def test_a_folder_in_two_classes_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path, "ant/a.jpg", "cat/b.jpg")
    (source / "bee").symlink_to("ant")
    with pytest.raises(UserError, match="bee is the same folder as ant, and an image has one cl"):
        take_images(list_images(source))
    assert take_images(list_images(source), is_unlabelled=True).left_out == (
        "1 folder listed already (bee is ant)",
    )
    (source / "bee").unlink()
    (source / "cat/up").symlink_to("..")
    found = take_images(list_images(source))
    assert [(image.path, image.label) for image in found.images] == [
        ("ant/a.jpg", 0),
        ("cat/b.jpg", 1),
    ]
    assert found.left_out == ("1 folder listed already (cat/up is above it)",)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val"),
        ("train", "val", "test"),
        ("Training", "validation"),
        ("train",),
        ("train2017", "val2017", "annotations"),
        ("train_images", "test_images"),
    ],
)
def test_splits_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = put(tmp_path, *(f"{name}/cat/a.jpg" for name in names))
    with pytest.raises(UserError, match=r"likely splits; give each as a SOURCE of its own"):
        take_images(list_images(source))
    assert len(take_images(list_images(source), is_unlabelled=True).images) == len(names)
    assert take_images(list_images(source), classes=sorted(names)).classes == tuple(sorted(names))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    source = put(tmp_path, "bus/a.jpg", "train/a.jpg", "valley/a.jpg", "testudo/a.jpg")
    assert take_images(list_images(source)).classes == ("bus", "testudo", "train", "valley")


def test_given_classes_number_the_folders(tmp_path: Path) -> None:
    source = put(tmp_path, "cat/a.jpg", "bee/b.jpg", "cafe\u0301/c.jpg")
    found = take_images(list_images(source), classes=["dog", "cat", "caf\u00e9", "bee"])
    assert found.classes == ("dog", "cat", "caf\u00e9", "bee")
    assert {image.path[:3]: image.label for image in found.images} == {"bee": 3, "caf": 2, "cat": 1}
    with pytest.raises(UserError, match=r"--classes lacks bee, caf., 2 class folders of SOURCE="):
        take_images(list_images(source), classes=["dog", "cat"])
    with pytest.raises(UserError, match=r"--classes numbers the folders .* has none: --unlabelled"):
        take_images(list_images(source), classes=["dog", "cat"], is_unlabelled=True)
    put(source, "beside.jpg")
    with pytest.raises(UserError, match=r"has none: in no folder of a class: beside.jpg"):
        take_images(list_images(source), classes=["dog", "cat"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"caf\xe9", r"'caf\\xe9' is not UTF-8; rename it, or give --unlabelled"),
        (b"a\nb", r"'a\\nb' has a line break in its name; rename"),
        (b"a\rb", r"'a\\rb' has a line break"),
        (b"cat ", "'cat ' begins or ends with a blank"),
        (b" cat", "' cat' begins or ends with a blank"),
        ("\ufeffcat".encode(), "cat' begins or ends with a blank"),
    ],
)
def test_names_that_no_list_of_classes_gives_back(tmp_path: Path, name: bytes, text: str) -> None:
    put(tmp_path, "ant/a.jpg", f"{os.fsdecode(name)}/b.jpg")
    with pytest.raises(UserError, match=text):
        take_images(list_images(tmp_path))
    assert len(take_images(list_images(tmp_path), is_unlabelled=True).images) == 2


def test_a_list_of_classes_gives_all_other_names_back(tmp_path: Path) -> None:
    names = ["#1", "- a", "a\tb", "b: c", "caf\u00e9", "it's", "null", "x  y", "\u732b"]
    put(tmp_path, *(f"{name}/a.jpg" for name in names))
    found = take_images(list_images(tmp_path)).classes
    content = "".join(f"{name}\n" for name in found).encode()
    assert parse_classes(content, "classes.txt") == list(found) == sorted(names)


def test_one_name_in_two_spellings(tmp_path: Path) -> None:
    put(tmp_path, "caf\u00e9/a.jpg", "cafe\u0301/b.jpg")
    with pytest.raises(UserError, match="two folders are both called"):
        take_images(list_images(tmp_path))


# ---------------------------------------------------------------- the plan


def test_keys_are_unique_and_can_be_read_back() -> None:
    paths = [
        "a.jpg",
        "a.png",
        "a_b.jpg",
        "a.b.jpg",
        "a~1.jpg",
        "v1.0/__x__.jpg",
        "__m__/a.jpg",
        "n\nl/a.jpg",
    ]
    keys = unique_keys(paths)
    assert keys == ["a", "a~1", "a_b", "a_b~1", "a~1~1", "v1_0/__x__", "x__m__/a", "n_l/a"]
    assert [split_name(f"{key}.jpg") for key in keys] == [(key, "jpg") for key in keys]


def test_the_plan_holds_each_image_once() -> None:
    plan = plan_shards(IMAGES, OPTIONS)
    assert sorted((i for shard in plan.values() for i in shard), key=lambda i: i.path) == IMAGES
    val = [image for name, shard in plan.items() if name.startswith("val-") for image in shard]
    assert 0.15 < len(val) / len(IMAGES) < 0.35
    assert list(plan)[:2] == ["train-000000.tar", "train-000001.tar"]


def test_shards_are_as_large_as_stated(tmp_path: Path) -> None:
    """A shard is the samples and at most one record of 10,240 bytes for the end."""
    source = tmp_path / "source" / "c"
    source.mkdir(parents=True)
    for i in range(100):
        (source / f"{i}.jpg").write_bytes(bytes(100 * i + 1))
    found = take_images(list_images(source.parent))
    sizes: list[int] = []
    for name, shard in plan_shards(found.images, replace(OPTIONS, val_ratio=0)).items():
        write_shard(tmp_path / name, load_samples(source.parent, found, shard))
        sizes.append((tmp_path / name).stat().st_size)
    assert len(sizes) == 7
    assert max(sizes) <= OPTIONS.shard_bytes + 10_240
    assert min(sizes[:-1]) > OPTIONS.shard_bytes - 15_000


def test_the_split_of_an_image_depends_on_nothing_but_path_and_seed() -> None:
    def val(images: list[SourceImage], options: PlanOptions) -> set[str]:
        plan = plan_shards(images, options)
        return {i.path for name in plan if name.startswith("val-") for i in plan[name]}

    whole = val(IMAGES, OPTIONS)
    assert val(IMAGES[::2], replace(OPTIONS, shuffle=False)) == whole & {
        image.path for image in IMAGES[::2]
    }
    assert val(IMAGES, replace(OPTIONS, seed=1)) != whole


def val_of(images: list[SourceImage], options: PlanOptions) -> set[str]:
    plan = plan_shards(images, options)
    return {image.path for name in plan if name.startswith("val-") for image in plan[name]}


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.95])
def test_each_class_keeps_an_image_in_training(ratio: float) -> None:
    images = [
        SourceImage(f"{label}/{i}.jpg", f"{label}/{i}", 900, label)
        for label in range(60)
        for i in range(1 + label % 4)
    ]
    options = replace(OPTIONS, val_ratio=ratio)
    val = val_of(images, options)
    assert {image.label for image in images if image.path not in val} == set(range(60))
    one = {image.path for image in images if image.label is not None and image.label % 4 == 0}
    assert not val & one
    # unlabelled, the draw alone decides; and so it does for all but an image of some classes
    drawn = val_of([replace(image, label=None) for image in images], options)
    assert val < drawn
    assert len({path.split("/")[0] for path in drawn - val}) == len(drawn - val)
    # an image more changes at most one other, of its class
    more = SourceImage("3/new.jpg", "3/new", 900, 3)
    moved = val_of([*images, more], options) ^ val
    assert {path.split("/")[0] for path in moved} <= {"3"}
    assert len(moved - {"3/new.jpg"}) <= 1


def test_the_plan_hash_says_what_was_kept_in_training(source: Path) -> None:
    """It is what it always was where nothing was; a plan that changed is not gone on with."""
    found = take_images(list_images(source))
    low, high = (replace(OPTIONS, val_ratio=ratio) for ratio in (0.01, 0.99))
    assert plan_hash(found, low) == (
        "67a49cc0141a0e598d1955d56c4bbd6de0aec33f8738eb57904420ca24be3428"
    )
    assert val_of(list(found.images), low) == set()
    assert len(val_of(list(found.images), high)) == 1
    assert plan_hash(found, high) != (
        "9322174b18081e7b8aac1f06e59d7b8e5a58c5af4ead1372855e69decb0169c3"  # before
    )


def test_the_order() -> None:
    def order(**changes: object) -> list[SourceImage]:
        plan = plan_shards(IMAGES, replace(OPTIONS, val_ratio=0, **changes))
        return [image for shard in plan.values() for image in shard]

    assert order(shuffle=False) == IMAGES
    assert order() == order() != IMAGES
    assert order(seed=1) != order()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (replace(OPTIONS, val_ratio=1.0), r"--val-ratio=1.0 is not in \[0, 1\); try 0.05"),
        (replace(OPTIONS, shard_bytes=0), "--shard-mb is not above 0; try 256"),
        (replace(OPTIONS, val_ratio=0.999999), "leaves no image for training; lower it"),
    ],
)
def test_options_that_are_refused(options: PlanOptions, text: str) -> None:
    with pytest.raises(UserError, match=text):
        plan_shards([replace(image, label=None) for image in IMAGES[:3]], options)


@pytest.mark.parametrize("change", ["added", "resized", "removed", "renamed"])
def test_the_plan_hash_covers_the_source(source: Path, change: str) -> None:
    before = plan_hash(take_images(list_images(source)), OPTIONS)
    assert plan_hash(take_images(list_images(source)), OPTIONS) == before
    assert plan_hash(take_images(list_images(source)), replace(OPTIONS, seed=1)) != before
    if change == "added":
        (source / "cat" / "new.jpg").write_bytes(b"x")
    elif change == "resized":
        (source / "cat" / "a.jpg").write_bytes(b"another size")
    elif change == "removed":
        (source / "cat" / "a.jpg").unlink()
    else:
        (source / "cat").rename(source / "lion")
    assert plan_hash(take_images(list_images(source)), OPTIONS) != before


def test_an_image_that_changed_is_refused(source: Path) -> None:
    found = take_images(list_images(source))
    [image] = found.images[:1]
    assert next(load_samples(source, found, [image])).data == b"cat/a.jpg"
    for change in (
        lambda: (source / image.path).write_bytes(b"short"),
        (source / image.path).unlink,
    ):
        change()
        with pytest.raises(UserError, match=r"cat/a.jpg has changed since it was listed; start"):
            next(load_samples(source, found, [image]))
