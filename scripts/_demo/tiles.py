"""The demo of images: what pretraining without labels is worth, on tiles of photographs."""

from pathlib import Path

from data.demo.tiles import FOLDER, NUM_TRAIN, PHOTOGRAPHS, make_demo_shards
from data.text import count
from scripts._demo.steps import Demo, Step, read_last_record, read_result

RUN = Path("runs/demo")
_PROBE = f"probe.train={FOLDER}/train-*.tar probe.val={FOLDER}/val-000000.tar probe.every=0"
_FEWSHOT = "python finetune/fewshot.py configs/finetune/demo-fewshot.yaml"
_FINETUNE = "python finetune/run.py configs/finetune/demo.yaml"


def _results() -> list[str]:
    """Return lines: each use of the encoder, untrained and pretrained, and hidden patches."""
    lines = ["\nWhich photograph is a tile from? Right answers, on tiles that were not trained on:"]
    lines.append(f"  {'the encoder':<40}{'untrained':>12}{'pretrained':>14}")
    for name, untrained, pretrained in _named_right():
        lines.append(f"  {name:<40}{untrained:>12.1%}{pretrained:>14.1%}")
    chance = 1 / len(PHOTOGRAPHS)
    lines.append(f"  {'guessing':<40}{chance:>12.1%}{chance:>14.1%}")
    last = read_last_record(RUN)
    copying, filled = last["val/accuracy_neighbour"], last["val/accuracy_mask"]
    lines.append(
        "\nWhat is behind a hidden patch, one of 512 kinds? Right answers, on the same tiles:"
    )
    lines.append(f"  {'copying the nearest patch that is seen':<40}{copying:>26.1%}")
    lines.append(f"  {'the pretrained model':<40}{filled:>26.1%}")
    return lines


def _named_right() -> list[tuple[str, float, float]]:
    """Return for each way to use the encoder its accuracy untrained, and pretrained."""
    untrained, pretrained = (
        read_result(RUN / f"{name}/result.json") for name in ("fewshot-untrained", "fewshot")
    )
    rows = [
        (f"frozen, {count(shots, 'labelled tile')} of each", untrained[key], pretrained[key])
        for shots in (1, 5, 10, 25)
        for key in [f"accuracy/{shots}shot"]
    ]
    scratch, tuned = (read_result(RUN / f"{name}/result.json") for name in ("scratch", "finetune"))
    text = f"fine-tuned, all {NUM_TRAIN:,} labelled tiles"
    return [*rows, (text, scratch["accuracy"], tuned["accuracy"])]


TILES = Demo(
    shows="what pretraining without labels is worth, on tiles of eight photographs",
    minutes=3,
    folder=RUN,
    shards=f"tiles of eight photographs, lie in {FOLDER}",
    make_shards=make_demo_shards,
    steps=(
        Step("Pretrain", f"python pretrain/run.py configs/pretrain/demo.yaml {_PROBE}"),
        Step(
            "Measure the pretrained encoder with few labels",
            f"{_FEWSHOT} encoder.init={RUN} fewshot.dir={RUN}/fewshot",
        ),
        Step(
            "Measure the same encoder untrained",
            f"{_FEWSHOT} encoder.like={RUN} fewshot.dir={RUN}/fewshot-untrained",
        ),
        Step(
            "Fine-tune the pretrained encoder",
            f"{_FINETUNE} encoder.init={RUN} run.dir={RUN}/finetune",
        ),
        Step(
            "Train the same encoder from scratch",
            f"{_FINETUNE} encoder.like={RUN} run.dir={RUN}/scratch",
        ),
        Step(
            "Export in timm's format",
            f"python scripts/export.py {RUN} {RUN}/export",
            RUN / "export",
        ),
        Step("Write the report", f"python scripts/report.py {RUN}"),
    ),
    gain="What pretraining without labels gained",
    results=_results,
    places=(
        f"{RUN}/report.html   curves, nearest images, what was filled in; open it in a browser",
        f"{RUN}/encoder/      the encoder, in timm's format",
        f"{RUN}/export/       the same as a plain folder, to copy elsewhere",
        f"{RUN}/finetune/     the fine-tuned classifier and its result.json",
    ),
    following="a folder of your own images",
    commands=(
        "mpp recommend photos/ --hours 1    # a recipe for them and this machine: recipe.yaml",
        "mpp pretrain recipe.yaml           # trains an encoder in that hour, in runs/mine",
    ),
)
