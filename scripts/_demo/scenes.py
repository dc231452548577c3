"""The demo of images with captions: what one transformer learns of drawn scenes."""

from pathlib import Path

from data.demo.scenes import FOLDER, make_scene_shards
from scripts._demo.steps import Demo, Step, read_last_record

RUN = Path("runs/demo-vilt")


def _results() -> list[str]:
    """Return lines: each objective's accuracy on scenes that were not trained on."""
    last = read_last_record(RUN)
    return [
        "\nIs this the picture's own caption? Right answers, on scenes that were not trained on:",
        _row("guessing", 0.5),
        _row("the pretrained model", last["val/accuracy_matching"]),
        "\nWhich word is masked? Right answers, on the same scenes:",
        _row("the most frequent word, always", last["val/accuracy_words_majority"]),
        _row("the pretrained model, without the picture", last["val/accuracy_words_blank"]),
        _row("the pretrained model", last["val/accuracy_words"]),
    ]


def _row(name: str, *ratios: float) -> str:
    return f"  {name:<44}" + "".join(f"{ratio:>14.1%}" for ratio in ratios)


SCENES = Demo(
    shows="what a transformer learns from images with captions, on scenes of drawn shapes",
    minutes=2,
    folder=RUN,
    shards=f"drawn scenes with captions, lie in {FOLDER}",
    make_shards=make_scene_shards,
    steps=(
        Step(
            "Pretrain on images and captions",
            "python pretrain/vilt/run.py configs/pretrain/vilt-demo.yaml",
        ),
    ),
    gain="What was learnt from images and captions",
    results=_results,
    places=(
        f"{RUN}/metrics.jsonl   the curves",
        f"{RUN}/encoder/        the image half of the model, in timm's format",
        f"{RUN}/tokenizer.json  the vocabulary, learnt from the captions",
    ),
    following="shards of your own images and captions",
    commands=(
        "python pretrain/vilt/run.py configs/pretrain/vilt-small.yaml "
        "data.shards=SHARDS run.dir=runs/mine",
    ),
)
