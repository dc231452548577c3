"""The main job, end to end, on photographs that scikit-image ships: what `make demo` runs.

    python scripts/demo.py

Makes shards, pretrains, measures few-shot accuracy against an untrained encoder, fine-tunes against
training from scratch, exports, and writes the report; each step is the command that a user would
type, and is printed. After Ctrl-C the same command goes on.
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

from data.commands import run_command
from data.demo import FOLDER, make_demo_shards
from data.settings import OneLineParser, run_entry_point

RUN = Path("runs/demo")
PROBE = "probe.train=shards/demo/train-*.tar probe.val=shards/demo/val-000000.tar probe.every=100"
FEWSHOT = "python finetune/fewshot.py configs/finetune/demo-fewshot.yaml"
FINETUNE = "python finetune/run.py configs/finetune/demo.yaml"

STEPS = (
    (
        "Pretrain",
        f"python pretrain/run.py configs/pretrain/demo.yaml {PROBE}",
    ),
    (
        "Few-shot accuracy of the pretrained encoder",
        f"{FEWSHOT} encoder.init={RUN} fewshot.dir={RUN}/fewshot",
    ),
    (
        "Few-shot accuracy of an untrained encoder",
        f"{FEWSHOT} encoder.like={RUN} fewshot.dir={RUN}/fewshot-untrained",
    ),
    ("Fine-tune the pretrained encoder", f"{FINETUNE} encoder.init={RUN} run.dir={RUN}/finetune"),
    ("Train the same from scratch", f"{FINETUNE} encoder.like={RUN} run.dir={RUN}/scratch"),
    ("Export in timm's format", f"python scripts/export.py {RUN} {RUN}/export"),
    ("Write the report", f"python scripts/report.py {RUN}"),
)

NEXT = (
    "python scripts/recommend.py photos/ --hours 1 --out mine.yaml     # a recipe for them",
    "python pretrain/run.py mine.yaml                                  # trains an encoder",
    "python pretrain/run.py configs/pretrain/small.yaml data.shards=photos/ run.dir=runs/mine \\",
    "    run.minutes=60                        # or without a recipe of your own, in an hour",
)


def main(arguments: list[str]) -> None:
    """Run all steps; leave with the status of the first that fails."""
    formatter = argparse.RawDescriptionHelpFormatter
    OneLineParser(description=__doc__, formatter_class=formatter).parse_args(arguments)
    begin = time.monotonic()
    print(
        "The demo shows what pretraining without labels is worth, on tiles of eight photographs.\n"
        f"It takes {len(STEPS)} steps, 4 to 6 minutes on 2 CPU cores, and writes below {RUN}:"
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
    pretrained, untrained = (
        _read(f"{name}/result.json") for name in ("fewshot", "fewshot-untrained")
    )
    print(f"\n== Done in {seconds / 60:.1f} minutes. What pretraining without labels gained:")
    print("  labelled images a class    untrained    pretrained")
    for shots in (1, 5, 10, 25):
        key = f"accuracy/{shots}shot"
        print(f"  {shots:>23}    {untrained[key]:>9.1%}    {pretrained[key]:>10.1%}")
    scratch, tuned = (_read(f"{name}/result.json") for name in ("scratch", "finetune"))
    key = "accuracy"
    print(f"  {'all, fine-tuned':>23}    {scratch[key]:>9.1%}    {tuned[key]:>10.1%}")
    print("\nWhere it lies:")
    print(f"  {RUN}/encoder/      the encoder, in timm's format")
    print(f"  {RUN}/export/       the same as a plain folder, to copy elsewhere")
    print(f"  {RUN}/finetune/     the fine-tuned classifier and its result.json")
    print(f"  {RUN}/report.html   curves and reconstructions; open it in a browser")
    print("\nNext, with a folder of your own images:")
    for line in NEXT:
        print(f"  {line}")


def _read(name: str) -> dict[str, Any]:
    return json.loads((RUN / name).read_text())


if __name__ == "__main__":
    run_entry_point(main)
