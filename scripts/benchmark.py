"""Measure speed and learning beside what people would use instead.

    python scripts/benchmark.py step [--encoder CONFIG.yaml] [--precision bf16] [--json step.json]
    python scripts/benchmark.py run [SHARDS ...] [--processes 2] [--json run.json] [--png run.png]
    python scripts/benchmark.py variants CONFIG.yaml --variant 'key=value ...' [--variant ...]
    python scripts/benchmark.py loader [SHARDS ...] [--against dali,timm]
    python scripts/benchmark.py gpu [--minutes 25] [--parts B/16,run] [--json gpu.json]
    python scripts/benchmark.py learn [--minutes 10] [--seeds 0,1,2] [--json learn.json]
    python scripts/benchmark.py compare RECORDED.json|FOLDER NEW.json|FOLDER [...]
    python scripts/benchmark.py page FOLDER
    python scripts/benchmark.py pretrain CONFIG.yaml alternative.name=NAME key.sub=value

`step` gives step_vs_timm, our whole training step against the forward and backward of timm's bare
encoder; step_maskfree_vs_timm, the same without masked patches in the encoder;
step_selective_vs_timm, with run.grad_checkpointing=selective; step_vs_vit_pytorch and more, against
the steps of others (extra `bench`); each one's share of the matrix-multiply peak, and its peak
memory. `run` gives run_vs_step, a run from shards with loader processes and
checkpoints against our step alone, and with --processes 2 two_processes_vs_one.
`variants` gives the speed of our training step with other keys against that of CONFIG.yaml, such as
--variant encoder.sees_masked=false; it reads no data.
`loader` gives loader_vs_pil, loader_vs_dali and more: the training crops that one core makes,
against what people would use instead (extra `bench`), of the same images; stream_vs_webdataset,
against plain webdataset with our decoder and crop; and the same of CPU time. Above 1 ours is the
faster. Without SHARDS, scikit-image's photographs are read.

`gpu` measures what one GPU gives, within some minutes: for ViT-S/16, B/16 and L/16 at 224 px, in
bf16 and compiled, our step by the paper's objective and by visual words, each as it is, with
run.cuda_graphs and with run.bf16_residual, timm's bare encoder and transformers' MAE; runs from
shards over their bare step; small images from shards and from memory; attention by each of torch's
kernels; the loader by its number of processes. It prints a table in Markdown. Rows that fail, or
have no answer in their time, are named with their reason; status 1 if there are any. Without a GPU
it takes a short form.

`learn` gives the accuracies of encoders after an equal wall time of pretraining, by our objectives
and by others (extra `bench`), as `scripts/ablate.py learn` does, and ours over each of the others';
status 1 if a row failed.
`compare` reports the ratios that got worse by more than the spread since they were recorded;
status 1 if there are any. `page` prints a folder's records as Markdown.
`pretrain` pretrains an encoder by another project's objective, all else as in pretrain/run.py;
`pretrain --help` names its keys.

Where other programs keep a core busy, give `step --threads 1`: threads that share a step wait for
the one that was held up, some hundreds of times a step, and the ratio is no longer ours.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below

from data.settings import OneLineParser, run_entry_point
from data.shards import atomic_write
from data.storage.locations import user_path
from scripts._benchmark.options import BENCHMARKS, add_options, read_options

# What each subcommand runs is imported where it starts: torch and timm take seconds.


def main(arguments: list[str]) -> None:
    """Run `python scripts/benchmark.py ARGUMENTS`."""
    if arguments[:1] == ["pretrain"]:  # its arguments are keys, and so is its --help
        from scripts._benchmark.alternatives.pretrain import pretrain

        return pretrain(arguments[1:])
    chosen = _parse(arguments)
    if chosen.subcommand == "compare":
        return _compare(chosen)
    if chosen.subcommand == "page":
        from scripts._benchmark.page import make_page

        return print(make_page(chosen.folder), end="")
    return _measure(chosen, shlex.join(["python", "scripts/benchmark.py", *arguments]))


def _measure(chosen: argparse.Namespace, command: str) -> None:
    benchmark = BENCHMARKS[chosen.subcommand]
    options = read_options(chosen, benchmark.options)
    with TemporaryDirectory() as folder:
        record, text = benchmark.measure(options, Path(folder))
    record["command"] = command
    print(text)
    _write(record, chosen.json, chosen.png)
    if record.get("num_failed"):  # of `learn` and `gpu`
        sys.exit(1)


def _write(record: dict[str, Any], json_path: Path | None, png_path: Path | None) -> None:
    if json_path is not None:
        with atomic_write(json_path) as file:
            file.write(json.dumps(record, indent=1).encode() + b"\n")
    if png_path is not None:
        from scripts._benchmark.chart import draw

        draw(record, png_path)


def _compare(chosen: argparse.Namespace) -> None:
    from scripts._benchmark.compare import compare

    text, num_fallen = compare(chosen.recorded, chosen.new)
    print(text)
    sys.exit(1 if num_fallen else 0)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = "|".join([*BENCHMARKS, "compare", "page", "pretrain"])
    subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar=names)
    for name, benchmark in BENCHMARKS.items():
        add_options(
            subcommands.add_parser(name, help=benchmark.meaning, description=benchmark.meaning),
            benchmark.options,
        )
    compare = subcommands.add_parser("compare", help="ratios that fell since they were recorded")
    text = "a record, or a folder of records"
    compare.add_argument("recorded", type=user_path, metavar="RECORDED", help=text)
    text = "the same, measured now"
    compare.add_argument("new", type=user_path, nargs="+", metavar="NEW", help=text)
    page = subcommands.add_parser("page", help="a folder's records as Markdown")
    text = "of records that --json wrote"
    page.add_argument("folder", type=user_path, metavar="FOLDER", help=text)
    subcommands.add_parser("pretrain", help="an encoder by another project's objective")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_entry_point(main)
