"""Heat maps of words for the trackers, of a whole run; it learns the same without them."""

import io
from pathlib import Path

from PIL import Image

import pretrain.vilt.run
from tests.pretrain.records.test_trackers import tensorboard_images

ON = ["data.max_bad_ratio=0.2", "run.trackers=[tensorboard]"]


def test_tensorboard_gets_heat_maps_of_words(
    tmp_path: Path, tiny_vilt: list[str], vilt_run: Path
) -> None:
    run = tmp_path / "run"
    pretrain.vilt.run.main([*tiny_vilt, *ON, f"run.dir={run}"])
    found = tensorboard_images(run)
    assert found.keys() == {"learnt/words_1", "learnt/words_2"}
    for pictures in found.values():
        assert [step for step, _, _ in pictures] == [6, 12]
        for _, size, content in pictures:
            picture = Image.open(io.BytesIO(content))
            assert picture.size == size
            assert len(set(picture.tobytes())) > 10  # not an empty sheet
    weights = "checkpoints/step-00000012/model.safetensors"
    assert (run / weights).read_bytes() == (vilt_run / weights).read_bytes()
