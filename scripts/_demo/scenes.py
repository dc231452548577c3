"""The demo of images with captions: what one transformer learns of drawn scenes."""

from pathlib import Path

from data.demo.scenes import FOLDER, make_scene_shards
from scripts._demo.steps import Demo, Step, read_last_record, read_result

RUN = Path("runs/demo-vilt")
_CLASSIFY = "python finetune/vilt/classify.py configs/finetune/vilt-demo.yaml"
_NUM_SEARCHED = 100  # scenes


def _results() -> list[str]:
    """Return lines: figures of scenes that were not trained on, beside their baselines."""
    last = read_last_record(RUN)
    found = read_result(RUN / "retrieval/result.json")
    scratch, tuned = (read_result(RUN / f"{name}/result.json") for name in ("scratch", "finetune"))
    captions, images = found["image_to_text"], found["text_to_image"]
    return [
        "\nIs this the picture's own caption? Right answers, on scenes that were not trained on:",
        _row("the more frequent answer, always", last["val/accuracy_matching_majority"]),
        _row("the pretrained model", last["val/accuracy_matching"]),
        "\nWhich word is masked? Right answers, on the same scenes:",
        _row("the most frequent word, always", last["val/accuracy_words_majority"]),
        _row("the pretrained model, without the picture", last["val/accuracy_words_blank"]),
        _row("the pretrained model", last["val/accuracy_words"]),
        f"\nWhat belongs together, among {_NUM_SEARCHED} of these scenes? First answers right:",
        f"  {'':<44}{'its picture':>14}{'its caption':>14}",
        _row("guessing", images["chance@1"], captions["chance@1"]),
        _row("the pretrained model", images["recall@1"], captions["recall@1"]),
        "\nIs a statement about a picture true? Right answers, after training on statements:",
        _row("guessing", 0.5),
        _row("the same model from scratch", scratch["accuracy"]),
        _row("the pretrained model", tuned["accuracy"]),
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
        Step(
            "Find pictures by their captions, and captions by their pictures",
            f"python finetune/vilt/retrieve.py {RUN} {FOLDER}/val-000000.tar "
            f"--number {_NUM_SEARCHED}",
        ),
        Step(
            "Fine-tune the pretrained model on statements, true or false",
            f"{_CLASSIFY} encoder.init={RUN}",
        ),
        Step(
            "Train the same model on statements from scratch",
            f"{_CLASSIFY} encoder.like={RUN} run.dir={RUN}/scratch",
        ),
        Step("Write the report", f"python scripts/report.py {RUN}"),
    ),
    gain="What was learnt from images and captions",
    results=_results,
    places=(
        f"{RUN}/report.html     curves, answers, where a word looks; open it in a browser",
        f"{RUN}/retrieval/      each query with its first answers",
        f"{RUN}/finetune/       the classifier of statements and its result.json",
        f"{RUN}/encoder/        the image half of the model, in timm's format",
        f"{RUN}/tokenizer.json  the vocabulary, learnt from the captions",
    ),
    following="shards of your own images and captions",
    commands=(
        "python pretrain/vilt/run.py configs/pretrain/vilt-small.yaml data.shards=SHARDS "
        "run.dir=runs/mine",
        "python finetune/vilt/retrieve.py runs/mine SHARDS",
    ),
)
