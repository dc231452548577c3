"""The data of the demo with captions: shards of drawn scenes, and what is said of them.

A sample is a picture, two captions (`KEY.txt`), and a statement with whether it is true
(`KEY.json`: `sentence`, `label`). No scene occurs twice, so none of validation is in training.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.demo.drawing import Scene, draw_scenes, paint
from data.demo.making import as_png, make_whole, write_shards
from data.demo.sentences import make_captions, make_statement
from data.shards import ImageFile

FOLDER = Path("shards/scenes")  # below the working folder
NUM_TRAIN, NUM_VAL = 4000, 500  # scenes
_NUM_TRAIN_SHARDS = 4
_SEED = 0


def scene_shards_exist(folder: Path) -> bool:
    """Tell whether `make_scene_shards` has made this folder; it makes all of it or nothing."""
    return (folder / "train-000000.tar").exists() and (folder / "val-000000.tar").exists()


def make_scene_shards(folder: Path = FOLDER) -> None:
    """Make the shards of scenes and their index, whole or not at all; those there are kept.

    The bytes are the same each time: 4 training shards with 4,000 scenes, 1 validation shard with
    500. Half of the statements in each are true.

    Raises:
        UserError: If the folder exists and holds something else.
    """
    if not scene_shards_exist(folder):
        make_whole(folder, _write)


def _write(folder: Path) -> None:
    scenes = draw_scenes(NUM_TRAIN + NUM_VAL, _SEED)
    train, val = scenes[:NUM_TRAIN], scenes[NUM_TRAIN:]
    size = NUM_TRAIN // _NUM_TRAIN_SHARDS
    plan = {
        f"train-{i:06d}.tar": train[i * size : (i + 1) * size] for i in range(_NUM_TRAIN_SHARDS)
    }
    write_shards(folder, plan | {"val-000000.tar": val}, _samples, "scene")


def _samples(scenes: Sequence[Scene]) -> Iterator[ImageFile]:
    for scene in scenes:
        generator = np.random.default_rng((_SEED, scene.number))
        is_true = scene.number // 2 % 2 == 0  # of scenes with two shapes and with three alike
        picture = as_png(paint(scene, generator))
        captions = make_captions(scene, generator)
        sentence = make_statement(scene, generator, is_true=is_true)
        yield ImageFile(
            f"{scene.number:08d}",
            "png",
            picture,
            captions=captions,
            record={"sentence": sentence, "label": is_true},
        )
