"""The scenes of the demo with captions: what is said of a picture is judged by its pixels."""

import io
import json
import re
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.demo.scenes
from data.demo.drawing import COLOURS, COLUMNS, FORMS, ROWS, SIDE, SIZES, draw_scenes, paint
from data.demo.scenes import make_scene_shards, scene_shards_exist
from data.demo.sentences import make_captions, make_statement
from data.settings import UserError

Seen = tuple[str, str, str, str, str]  # size, colour, form, row, column

SCENES = draw_scenes(200, seed=1)
_HALF = SIDE // 2
_FILLED = {"square": 1.0, "circle": np.pi / 4, "cross": 5 / 9}  # of its box


# ---------------------------------------------------------------- pictures


def see(picture: Image.Image) -> list[Seen]:
    """Find the shapes by the pixels."""
    pixels = np.asarray(picture).astype(int)
    seen: list[Seen] = []
    for (i, row), (j, column) in product(enumerate(ROWS), enumerate(COLUMNS)):
        quarter = pixels[i * _HALF : (i + 1) * _HALF, j * _HALF : (j + 1) * _HALF]
        distances = np.abs(quarter[:, :, None] - list(COLOURS.values())).max(-1)  # (H, W, colours)
        is_near = distances < 12
        if is_near.any():
            number = int(is_near.sum((0, 1)).argmax())
            size, form = _size_and_form(is_near[:, :, number])
            seen.append((size, list(COLOURS)[number], form, row, column))
    return seen


def _size_and_form(mask: np.ndarray) -> tuple[str, str]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    size = "large" if len(box) > np.mean(list(SIZES.values())) else "small"
    if box[: len(box) // 3].mean() < 0.5 * box[-(len(box) // 3) :].mean():
        return size, "triangle"
    return size, min(_FILLED, key=lambda form: abs(box.mean() - _FILLED[form]))


def test_a_picture_shows_the_shapes_of_its_scene() -> None:
    for scene in SCENES:
        picture = paint(scene, np.random.default_rng(scene.number))
        assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
        shapes = [(s.size, s.colour, s.form, s.row, s.column) for s in scene.shapes]
        assert see(picture) == shapes


def test_scenes_differ_in_more_than_sizes_and_have_two_or_three_shapes() -> None:
    kinds = {frozenset((s.name, s.place) for s in scene.shapes) for scene in SCENES}
    assert len(kinds) == len(SCENES)
    assert [len(scene.shapes) for scene in SCENES] == [2, 3] * 100
    assert [scene.number for scene in SCENES] == list(range(200))
    assert all(len({shape.name for shape in s.shapes}) == len(s.shapes) for s in SCENES)


# ---------------------------------------------------------------- sentences

_C, _F, _S = (f"({'|'.join(words)})" for words in (COLOURS, FORMS, SIZES))
_PLACE = f"({'|'.join(ROWS)}) ({'|'.join(COLUMNS)})"
_RELATION = "(left of|right of|above|below)"
_COUNTS = {"two": 2, "three": 3}


def holds(sentence: str, seen: list[Seen]) -> bool:
    """Judge each part of a sentence by the shapes that were seen."""
    return all(_part_holds(part, seen) for part in re.split(", | and ", sentence))


def _part_holds(part: str, seen: list[Seen]) -> bool:
    if match := re.fullmatch(f"a {_C} {_F} {_PLACE}", part):
        return match.groups() in [shape[1:] for shape in seen]
    if match := re.fullmatch("there are (two|three) shapes", part):
        return len(seen) == _COUNTS[match[1]]
    if match := re.fullmatch(f"the {_F} {_PLACE} is {_C}", part):
        form, row, column, colour = match.groups()
        return (colour, form, row, column) in [shape[1:] for shape in seen]
    if match := re.fullmatch(f"the {_C} {_F} is {_PLACE}", part):
        return match.groups() in [shape[1:] for shape in seen]
    match = re.fullmatch(f"the {_S} {_C} {_F} is {_RELATION} the {_S} {_C} {_F}", part)
    assert match, part
    first, relation, second = match.groups()[:3], match[4], match.groups()[4:]
    return any(
        _lies(one, other, relation)
        for one, other in product(seen, seen)
        if (one[:3], other[:3]) == (first, second)
    )


def _lies(one: Seen, other: Seen, relation: str) -> bool:
    (row, column), (other_row, other_column) = (
        (ROWS.index(shape[3]), COLUMNS.index(shape[4])) for shape in (one, other)
    )
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[relation]


SEEN = [("large", "red", "circle", "top", "left"), ("small", "blue", "cross", "bottom", "right")]


@pytest.mark.parametrize(
    ("sentence", "is_right"),
    [
        ("a red circle top left and a blue cross bottom right", True),
        ("a red circle top left and a blue cross top right", False),
        ("there are two shapes, the large red circle is above the small blue cross", True),
        ("there are two shapes, the small red circle is above the small blue cross", False),
        ("there are three shapes", False),
        ("the circle top left is blue", False),
        ("the circle top left is red", True),
        ("the blue cross is bottom right", True),
        ("the red circle is bottom right", False),
        ("the small blue cross is right of the large red circle", True),
        ("the small blue cross is left of the large red circle", False),
    ],
)
def test_the_judge_of_sentences(sentence: str, *, is_right: bool) -> None:
    assert holds(sentence, SEEN) == is_right


def test_captions_are_right_and_differ() -> None:
    swapped = 0
    for scene, other in zip(SCENES, SCENES[1:] + SCENES[:1], strict=True):
        seen = [(s.size, s.colour, s.form, s.row, s.column) for s in scene.shapes]
        captions = make_captions(scene, np.random.default_rng(scene.number))
        assert all(holds(caption, seen) for caption in captions), (captions, scene)
        assert all(len(caption.split()) <= 20 for caption in captions)
        others = make_captions(other, np.random.default_rng(other.number))
        swapped += sum(holds(caption, seen) for caption in others)
    assert swapped == 0  # another scene's captions are wrong


@pytest.mark.parametrize("is_true", [True, False])
def test_a_statement_is_true_or_false_as_asked(*, is_true: bool) -> None:
    kinds: set[str] = set()
    for scene in SCENES:
        seen = [(s.size, s.colour, s.form, s.row, s.column) for s in scene.shapes]
        generator = np.random.default_rng(scene.number)
        statement = make_statement(scene, generator, is_true=is_true)
        assert holds(statement, seen) == is_true, (statement, scene)
        kinds.add(re.sub(f"{_C}|{_F}|{_PLACE}|two|three", "-", statement))
    assert kinds == {"there are - shapes", "the - - is -"}


# ---------------------------------------------------------------- shards


@pytest.fixture
def fewer_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.demo.scenes, "NUM_TRAIN", 80)
    monkeypatch.setattr(data.demo.scenes, "NUM_VAL", 40)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in files.items() if file}


@pytest.mark.usefixtures("fewer_scenes")
def test_shards_hold_pictures_captions_and_statements(tmp_path: Path) -> None:
    assert not scene_shards_exist(tmp_path / "scenes")
    make_scene_shards(tmp_path / "scenes")
    assert scene_shards_exist(tmp_path / "scenes")
    shards = {path.stem: members(path) for path in sorted((tmp_path / "scenes").glob("*.tar"))}
    assert list(shards) == [*(f"train-{i:06d}" for i in range(4)), "val-000000"]
    pictures: set[bytes] = set()
    captions: set[bytes] = set()
    words: set[str] = set()
    stated: set[str] = set()
    for files in shards.values():
        keys = sorted({name.split(".")[0] for name in files})
        labels: list[bool] = []
        for key in keys:
            seen = see(Image.open(io.BytesIO(files[f"{key}.png"])))
            lines = files[f"{key}.txt"].decode().splitlines()
            record = json.loads(files[f"{key}.json"])
            assert all(holds(line, seen) for line in lines)
            assert holds(record["sentence"], seen) == record["label"]
            labels.append(record["label"])
            pictures.add(files[f"{key}.png"])
            captions.add(files[f"{key}.txt"])
            words |= set(re.findall(r"\w+", " ".join(lines)))
            stated |= set(record["sentence"].split())
        assert sum(labels) == len(labels) / 2
    assert len(pictures) == len(captions) == 120  # none of validation is in training
    assert stated <= words  # those that pretraining has seen
    assert len(words) < 50


@pytest.mark.usefixtures("fewer_scenes")
def test_scenes_are_the_same_each_time_and_kept(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_scene_shards(tmp_path / name)
    shards = sorted((tmp_path / "a").glob("*.tar"))
    assert len(shards) == 5
    for path in shards:
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    make_scene_shards(tmp_path / "a")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="holds other files than the demo's; delete it or name"):
        make_scene_shards(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
