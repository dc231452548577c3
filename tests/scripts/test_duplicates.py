"""scripts/duplicates.py finds planted copies, by name and side by side, and changes no image."""

import csv
import re
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import scripts.duplicates
from data.index.open import load_index, open_manifest
from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from tests.browsing import ASKS, BROWSER, COMPLAINS, DESK, OVERFLOW, PHONE, browsing
from tests.launching import run_ranks

PHOTOS = Path(__file__).resolve().parents[3] / "shared/data/photos"
KINDS = ("resized", "recompressed", "cropped", "flipped")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("duplicates") / "encoder"
    config = EncoderConfig("vit_tiny_patch16_224", "none", 8, 96, 2, 3)
    save_encoder(make_encoder(config, (64, 64)), folder)
    return folder


def plant(image: Image.Image, folder: Path, name: str) -> None:
    """Save an image, and four copies of it as they come to lie in archives."""
    width, height = image.size
    copies = {
        "": (image, 95),
        "-resized": (image.resize((width // 2, height // 2), Image.Resampling.LANCZOS), 95),
        "-recompressed": (image, 60),
        "-cropped": (image.crop((2, 2, width - 1, height - 2)), 95),
        "-flipped": (ImageOps.mirror(image), 95),
    }
    for kind, (copy, quality) in copies.items():
        copy.save(folder / f"{name}{kind}.jpg", quality=quality)


def draw(seed: int) -> Image.Image:
    """Draw a scene: blurred colours, and shapes upon them."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 255, (5, 5, 3)).astype(np.uint8)
    image = Image.fromarray(colours).resize((160, 160), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    for _ in range(12):
        left, top = generator.integers(0, 140, 2)
        width, height = generator.integers(8, 40, 2)
        pixels[top : top + height, left : left + width] = generator.integers(0, 255, 3)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes with copies, and eight without, in two folders."""
    folder = tmp_path_factory.mktemp("archive")
    for name in ("a", "b"):
        (folder / name).mkdir()
    for seed in range(4):
        plant(draw(seed), folder / "ab"[seed % 2], f"{seed}")
    for seed in range(4, 12):
        draw(seed).save(folder / "ab"[seed % 2] / f"{seed}.png")
    return folder


def find(encoder: Path, images: Path, out: Path, *options: object) -> None:
    arguments = [encoder, images, "--out", out, "--workers", "0", *options]
    scripts.duplicates.main([str(argument) for argument in arguments])


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))[1:]


def groups(out: Path) -> dict[str, set[str]]:
    """Return the names of each group's files."""
    found: dict[str, set[str]] = {}
    for group, key in rows(out / "groups.csv"):
        found.setdefault(group, set()).add(Path(key).stem)
    return found


@pytest.fixture(scope="module")
def found(encoder: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("found")
    find(encoder, archive, out)
    return out


# ---------------------------------------------------------------- what is found


def test_planted_copies_are_found_and_nothing_else(found: Path) -> None:
    expected = [{f"{seed}", *(f"{seed}-{kind}" for kind in KINDS)} for seed in range(4)]
    assert sorted(groups(found).values(), key=min) == expected
    pairs = rows(found / "pairs.csv")
    similarity = [float(pair[0]) for pair in pairs]
    assert similarity == sorted(similarity, reverse=True)
    assert min(similarity) >= 0.97
    for _, first, second, group in pairs:
        assert {Path(first).stem, Path(second).stem} <= groups(found)[group]


@pytest.mark.real_data
def test_planted_copies_of_photographs_are_found(encoder: Path, tmp_path: Path) -> None:
    shard = PHOTOS / "photos-000000.tar"
    if not shard.is_file():
        pytest.skip(f"{PHOTOS} is not there")
    (tmp_path / "photos").mkdir()
    with tarfile.open(shard) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")][:40]
        for number, member in enumerate(members):
            file = tar.extractfile(member)
            assert file is not None
            image = Image.open(BytesIO(file.read())).convert("RGB")
            if number < 8:
                plant(image, tmp_path / "photos", f"{number}")
            else:
                image.save(tmp_path / "photos" / f"{number}.jpg")
    find(encoder, tmp_path / "photos", tmp_path / "out", "--threshold", "0.997")
    together = groups(tmp_path / "out").values()
    for number in range(8):
        own = {f"{number}", f"{number}-resized", f"{number}-recompressed"}
        assert any(own <= group for group in together), own
    false = [group for group in together if len({name.split("-")[0] for name in group}) > 1]
    assert false == []


def test_the_most_alike_are_asked_for_and_features_taken_again(
    found: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = rows(found / "pairs.csv")
    find(found / "features.npy", archive, tmp_path / "out", "--top", "7", "--show", "4")
    assert [pair[:3] for pair in rows(tmp_path / "out/pairs.csv")] == [p[:3] for p in pairs[:7]]
    assert "comparing 28 images: 378 pairs of 96 numbers, in at most " in capsys.readouterr().out
    page = (tmp_path / "out/pairs.html").read_text()
    assert page.count("<article") == 4
    assert "The 2 most alike pairs" in page
    assert "The 2 least alike pairs" in page


def test_any_number_of_ranks_writes_the_same(
    encoder: Path, archive: Path, found: Path, tmp_path: Path
) -> None:
    for world in (2, 3):
        arguments = [str(encoder), str(archive), "--out", str(tmp_path / f"{world}")]
        arguments += ["--workers", "0"]
        run_ranks(arguments, world, tmp_path, script="scripts.duplicates")
        for name in ("pairs.csv", "groups.csv", "features.npy", "features.csv", "pairs.html"):
            assert (tmp_path / f"{world}" / name).read_bytes() == (found / name).read_bytes()


# ---------------------------------------------------------------- the list of what stays


def test_the_largest_file_of_a_group_stays_on_a_list_that_training_takes(
    found: Path, archive: Path, tmp_path: Path
) -> None:
    keep = archive / "keep.txt"
    find(found / "features.npy", archive, tmp_path, "--keep", keep)
    names = keep.read_text().splitlines()
    [shard] = open_manifest(keep, "data.train").shards
    assert sorted(name.decode() for name in load_index(shard).names()) == [
        n.rpartition(".")[0] for n in names
    ]
    assert open_manifest(keep, "data.train").num_samples == 4 + 8
    own = list(archive.glob("?/0*.jpg"))
    largest = max(own, key=lambda path: path.stat().st_size)
    assert [name for name in names if name.startswith("a/0")] == [f"a/{largest.name}"]
    keep.unlink()


# ---------------------------------------------------------------- the page


def test_the_page_stands_alone_and_names_each_picture(found: Path) -> None:
    page = (found / "pairs.html").read_text()
    pictures = re.findall(r'<img src="([^"]{30})[^"]*" alt="([^"]*)">', page)
    pairs = rows(found / "pairs.csv")
    assert [alt for _, alt in pictures] == [key for pair in pairs for key in pair[1:3]]
    assert all(source.startswith("data:image/jpeg;base64,") for source, _ in pictures)
    assert not re.search(r"https?:|<script|<link", page)


@pytest.mark.skipif(not BROWSER, reason="chromium is not installed")
def test_the_page_asks_for_nothing_and_fits_the_screen(found: Path, tmp_path: Path) -> None:
    with browsing(tmp_path / "profile") as browser:
        for size in (DESK, PHONE):
            browser.look(size)
            browser.open(found / "pairs.html")
            asked = [what["request"]["url"] for how, what in browser.events if how == ASKS]
            others = [url for url in asked if not url.startswith("data:")]
            assert others == [(found / "pairs.html").as_uri()]
            assert [event for event in browser.events if event[0] in COMPLAINS] == []
            assert browser.ask(OVERFLOW) == 0


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1.2"], r"--threshold=1.2 is not in \[-1, 1\], as a cosine is; try"),
        (["--top", "2000000"], "--top=2000000 is above 1,000,000, the most pairs that are kept"),
        (["--top", "3", "--threshold", "0.9"], "not allowed with argument"),
        (["--keep", "mine.csv"], "--keep=mine.csv does not end in .txt, by which a list"),
        (["--keep", "k.txt", "--top", "3"], "--keep=k.txt with --top: the most alike pairs may be"),
    ],
)
def test_a_mistake_in_an_option_is_told_at_once(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scripts.duplicates.main(["none", "none", "--out", "nowhere", *options])
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("name", ["pairs.csv", "groups.csv", "pairs.html", "features.npy"])
def test_a_file_of_the_users_is_not_replaced(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.write_text("mine")
    with pytest.raises(UserError, match=f"would replace .*{name}, which this command has not"):
        scripts.duplicates.main(["none", "none", "--out", str(tmp_path)])
    assert mine.read_text() == "mine"


def test_a_list_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("a.jpg\n")
    arguments = ["none", "none", "--out", str(tmp_path / "out"), "--keep", str(mine)]
    with pytest.raises(UserError, match=r"--keep=.*mine.txt is there already, and may be a list"):
        scripts.duplicates.main(arguments)
    assert mine.read_text() == "a.jpg\n"


def test_an_image_that_came_after_the_features_is_not_left_out_in_silence(
    found: Path, archive: Path, tmp_path: Path
) -> None:
    later = tmp_path / archive.name
    shutil.copytree(archive, later)
    (later / "a/zz.txt").write_text("no image")
    find(found / "features.npy", later, tmp_path / "out")  # as before: it is no image
    (later / "a/zz.jpg").write_bytes(b"damaged")
    find(found / "features.npy", later, tmp_path / "out")  # it can have no features
    shutil.copy(next(later.glob("a/0*.jpg")), later / "a/zzz.jpg")
    with pytest.raises(
        UserError, match=r"npy has no features of .*zzz.jpg, which is in IMAGES; give"
    ):
        find(found / "features.npy", later, tmp_path / "out")


@pytest.mark.parametrize(("number", "told"), [(3, " (the most alike two have "), (1, "; 0 groups")])
def test_where_there_are_no_pairs_the_most_alike_are_told(
    encoder: Path,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
    told: str,
) -> None:
    (tmp_path / "few").mkdir()
    for place, path in enumerate(sorted(archive.glob("b/*.jpg"))[:3]):
        content = path.read_bytes() if place < number else b"damaged"
        (tmp_path / f"few/{place}.jpg").write_bytes(content)
    find(encoder, tmp_path / "few", tmp_path / "out", "--threshold", "0.99999")
    assert f"pairs: 0, of similarity 0.99999 or more{told}" in capsys.readouterr().out


def test_features_of_other_images_and_lists_of_shards_are_refused(
    found: Path, encoder: Path, archive: Path, shards: Path, tmp_path: Path
) -> None:
    features = found / "features.npy"
    with pytest.raises(UserError, match=r"holds features of .*, and IMAGES has no such image, or"):
        find(features, archive / "a", tmp_path / "out")
    with pytest.raises(UserError, match=r"is a list of paths, and IMAGES=.* has shards; name the"):
        find(encoder, shards / "val-0.tar", tmp_path / "out", "--keep", tmp_path / "l.txt")
    (tmp_path / "f.npy").write_bytes(b"none")
    with pytest.raises(UserError, match=r"f.npy and f.csv beside it cannot be read: .*; give an"):
        find(tmp_path / "f.npy", archive, tmp_path / "out")
    np.save(tmp_path / "f.npy", np.ones((5, 2, 3), np.float32))
    (tmp_path / "f.csv").write_bytes((found / "features.csv").read_bytes())
    with pytest.raises(UserError, match=r"is no array of pooled features with a table of as many"):
        find(tmp_path / "f.npy", archive, tmp_path / "out")
