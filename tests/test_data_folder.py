"""From a folder of images to the plan of its shards."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.folder import (
    PlanOptions,
    SourceImage,
    find_images,
    load_image,
    plan_hash,
    plan_shards,
    unique_keys,
)
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
    found = find_images(source)
    assert found.classes == ("cat", "dog")
    assert [(image.path, image.key, image.label) for image in found.images] == [
        ("cat/a.jpg", "cat/a", 0),
        ("cat/deep/a.png", "cat/deep/a", 0),
        ("dog/b.v2.JPG", "dog/b_v2", 1),
    ]
    assert (found.num_empty, found.num_other) == (1, 1)


def test_no_labels_by_option_or_by_an_image_in_the_source_itself(source: Path) -> None:
    assert find_images(source, is_unlabelled=True).classes == ()
    (source / "z.gif").write_bytes(b"z")
    found = find_images(source)
    assert found.classes == ()
    assert [image.label for image in found.images] == [None] * 4


def test_sources_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SOURCE=.*none is not a folder; give the folder"):
        find_images(tmp_path / "none")
    with pytest.raises(UserError, match=r"SOURCE=.* holds no image; known extensions: bmp, gif"):
        find_images(tmp_path)


def test_keys_are_unique_and_can_be_read_back() -> None:
    paths = ["a.jpg", "a.png", "a_b.jpg", "a.b.jpg", "a~1.jpg", "v1.0/__x__.jpg", "__m__/a.jpg"]
    keys = unique_keys(paths)
    assert keys == ["a", "a~1", "a_b", "a_b~1", "a~1~1", "v1_0/__x__", "x__m__/a"]
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
    images = find_images(source.parent).images
    sizes: list[int] = []
    for name, shard in plan_shards(images, replace(OPTIONS, val_ratio=0)).items():
        write_shard(tmp_path / name, (load_image(source.parent, image) for image in shard))
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
        plan_shards(IMAGES[:3], options)


@pytest.mark.parametrize("change", ["added", "resized", "removed", "renamed"])
def test_the_plan_hash_covers_the_source(source: Path, change: str) -> None:
    before = plan_hash(find_images(source), OPTIONS)
    assert plan_hash(find_images(source), OPTIONS) == before
    assert plan_hash(find_images(source), replace(OPTIONS, seed=1)) != before
    if change == "added":
        (source / "cat" / "new.jpg").write_bytes(b"x")
    elif change == "resized":
        (source / "cat" / "a.jpg").write_bytes(b"another size")
    elif change == "removed":
        (source / "cat" / "a.jpg").unlink()
    else:
        (source / "cat").rename(source / "lion")
    assert plan_hash(find_images(source), OPTIONS) != before


def test_an_image_that_changed_is_refused(source: Path) -> None:
    image = find_images(source).images[0]
    assert load_image(source, image).data == b"cat/a.jpg"
    (source / image.path).write_bytes(b"short")
    with pytest.raises(UserError, match=r"cat/a.jpg has changed since it was listed; start again"):
        load_image(source, image)
