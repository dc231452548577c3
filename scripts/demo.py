"""The main job, end to end, on photographs that scikit-image ships: what `make demo` runs.

    python scripts/demo.py

Makes shards, pretrains without labels, measures the encoder against an untrained one, frozen and
fine-tuned, exports, and writes the report; each step is the command that a user would type, and is
printed. After Ctrl-C the same command goes on.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.commands import CHECKOUT, how_to_type, run_command
from data.demo.tiles import FOLDER, NUM_TRAIN, PHOTOGRAPHS, make_demo_shards
from data.settings import OneLineParser, run_entry_point
from data.text import count

RUN = Path("runs/demo")
PROBE = "probe.train=shards/demo/train-*.tar probe.val=shards/demo/val-000000.tar probe.every=0"
FEWSHOT = "python finetune/fewshot.py configs/finetune/demo-fewshot.yaml"
FINETUNE = "python finetune/run.py configs/finetune/demo.yaml"

STEPS = (
    (
        "Pretrain",
        f"python pretrain/run.py configs/pretrain/demo.yaml {PROBE}",
    ),
    (
        "Measure the pretrained encoder with few labels",
        f"{FEWSHOT} encoder.init={RUN} fewshot.dir={RUN}/fewshot",
    ),
    (
        "Measure the same encoder untrained",
        f"{FEWSHOT} encoder.like={RUN} fewshot.dir={RUN}/fewshot-untrained",
    ),
    ("Fine-tune the pretrained encoder", f"{FINETUNE} encoder.init={RUN} run.dir={RUN}/finetune"),
    ("Train the same encoder from scratch", f"{FINETUNE} encoder.like={RUN} run.dir={RUN}/scratch"),
    ("Export in timm's format", f"python scripts/export.py {RUN} {RUN}/export"),
    ("Write the report", f"python scripts/report.py {RUN}"),
)

NEXT = (
    "mpp recommend photos/ --hours 1    # a recipe for them and this machine: recipe.yaml",
    "mpp pretrain recipe.yaml           # trains an encoder in that hour, in runs/mine",
)


def main(arguments: list[str]) -> None:
    """Run all steps; leave with the status of the first that fails."""
    formatter = argparse.RawDescriptionHelpFormatter
    OneLineParser(description=__doc__, formatter_class=formatter).parse_args(arguments)
    begin = time.monotonic()
    print(
        "The demo shows what pretraining without labels is worth, on tiles of eight photographs.\n"
        f"It takes {len(STEPS)} steps, 3 minutes on 2 CPU cores, and writes below {RUN}:"
    )
    for number, (title, _) in enumerate(STEPS, start=1):
        print(f"  {number}. {title}")
    print(f"\n== The shards, tiles of eight photographs, lie in {FOLDER}")
    make_demo_shards()
    for number, (title, command) in enumerate(STEPS, start=1):
        print(f"\n== {number}/{len(STEPS)} {title}\n$ {command}", flush=True)
        if title.startswith("Export") and (RUN / "export").exists():
            print(f"{RUN}/export is there already")
            continue
        _run(command)
    _summarise(time.monotonic() - begin)


def _run(command: str) -> None:
    """Run a command with this interpreter's own programs."""
    program, *arguments = command.split()
    status = run_command([str(Path(sys.executable).with_name(program)), *arguments])
    if status:
        print(f"failed with status {status}: {command}", file=sys.stderr)
        sys.exit(status)


def _summarise(seconds: float) -> None:
    """Say what was gained, where it lies and how to go on."""
    print(f"\n== Done in {seconds / 60:.1f} minutes. What pretraining without labels gained")
    print("\nWhich photograph is a tile from? Right answers, on tiles that were not trained on:")
    print(f"  {'the encoder':<40}{'untrained':>12}{'pretrained':>14}")
    for name, untrained, pretrained in _named_right():
        print(f"  {name:<40}{untrained:>12.1%}{pretrained:>14.1%}")
    chance = 1 / len(PHOTOGRAPHS)
    print(f"  {'guessing':<40}{chance:>12.1%}{chance:>14.1%}")
    copying, filled = _filled_in_right()
    print("\nWhat is behind a hidden patch, one of 512 kinds? Right answers, on the same tiles:")
    print(f"  {'copying the nearest patch that is seen':<40}{copying:>26.1%}")
    print(f"  {'the pretrained model':<40}{filled:>26.1%}")
    print("\nWhere it lies:")
    print(f"  {RUN}/report.html   curves, nearest images, what was filled in; open it in a browser")
    print(f"  {RUN}/encoder/      the encoder, in timm's format")
    print(f"  {RUN}/export/       the same as a plain folder, to copy elsewhere")
    print(f"  {RUN}/finetune/     the fine-tuned classifier and its result.json")
    print("\nNext, with a folder of your own images:")
    for line in (*_activation(), *NEXT):
        print(f"  {line}")


def _named_right() -> list[tuple[str, float, float]]:
    """Return for each way to use the encoder its accuracy untrained, and pretrained."""
    untrained, pretrained = (_read(f"{n}/result.json") for n in ("fewshot-untrained", "fewshot"))
    rows = [
        (f"frozen, {count(shots, 'labelled tile')} of each", untrained[key], pretrained[key])
        for shots in (1, 5, 10, 25)
        for key in [f"accuracy/{shots}shot"]
    ]
    scratch, tuned = (_read(f"{name}/result.json") for name in ("scratch", "finetune"))
    text = f"fine-tuned, all {NUM_TRAIN:,} labelled tiles"
    return [*rows, (text, scratch["accuracy"], tuned["accuracy"])]


def _filled_in_right() -> tuple[float, float]:
    """Return how often copying is right about hidden patches, and the pretrained model."""
    last: dict[str, float] = json.loads((RUN / "metrics.jsonl").read_text().splitlines()[-1])
    return last["val/accuracy_neighbour"], last["val/accuracy_mask"]


def _activation() -> list[str]:
    """Return the line without which the shell does not find `mpp`; none where it does."""
    script = Path(sys.executable).with_name("activate")
    if how_to_type("pretrain").startswith("mpp") or not script.exists():
        return []
    here = script.relative_to(CHECKOUT) if script.is_relative_to(CHECKOUT) else script
    return [f". {here}"]


def _read(name: str) -> dict[str, Any]:
    return json.loads((RUN / name).read_text())


if __name__ == "__main__":
    run_entry_point(main)
