"""Measure what is fast and what is lost, against what all this is built on.

    python scripts/benchmark.py step [--encoder CONFIG.yaml] [--precision bf16] [--json step.json]
    python scripts/benchmark.py run [SHARDS ...] [--processes 2] [--json run.json] [--png run.png]
    python scripts/benchmark.py variants CONFIG.yaml --variant 'key=value ...' [--variant ...]
    python scripts/benchmark.py loader [SHARDS ...] [--epochs 20] [--against dali,timm]
    python scripts/benchmark.py order [--samples 1e9] [--shards 1e5] [--batch-size 2048]
    python scripts/benchmark.py resume [SHARDS ...] [--samples 40000]
    python scripts/benchmark.py faults
    python scripts/benchmark.py learn [--minutes 10] [--seeds 0,1,2] [--json learn.json]
    python scripts/benchmark.py compare RECORDED.json|FOLDER NEW.json|FOLDER [...]
    python scripts/benchmark.py page FOLDER

`step` gives step_vs_timm, our whole training step against the forward and backward of timm's bare
encoder; step_maskfree_vs_timm, the same without masked patches in the encoder;
step_selective_vs_timm, with run.grad_checkpointing=selective; step_vs_vit_pytorch and more, against
the steps of others (extra `bench`); each one's share of the matrix-multiply peak, and its peak
memory. `run` gives run_vs_step, a run from shards with loader processes and
checkpoints against our step alone, and with --processes 2 two_processes_vs_one.
`variants` gives the speed of a training step with other keys against that of CONFIG.yaml, such as
--variant encoder.sees_masked=false; it reads no data.
`loader` gives loader_vs_pil, loader_vs_dali and more: the training crops that one core makes,
against what people would use instead (extra `bench`), of the same images; stream_vs_webdataset,
against plain webdataset with our decoder and crop; the same of CPU time; and how far each one's
pixels are from an exact resize. Above 1 ours is the faster. Without SHARDS, scikit-image's
photographs are read.

`order` gives what a lookup of a batch's samples costs, and lookup_99_vs_1: late in an epoch against
early. `resume` gives the time and the bytes to the first batch at 1 and at 99 % of an epoch, and
plain webdataset's to skip to there; without SHARDS, over tiny images made on the spot. 1 is flat.
`faults` damages shards, servers and runs, and counts what was lost, named and mixed up.
`learn` gives the accuracies of encoders after an equal wall time of pretraining, by our objectives
and by others (extra `bench`), as `scripts/ablate.py learn` does, and ours over each of the others';
status 1 if a row failed.
`compare` says which ratios fell by more than the spread since they were recorded; status 1 if any.
`page` prints a folder's records as Markdown.

Where other programs keep a core busy, give `step --threads 1`: threads that share a step wait for
the one that was held up, some hundreds of times a step, and the ratio is no longer ours.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below, which take seconds

from data.settings import OneLineParser, run_entry_point
from data.shards import atomic_write
from data.storage.locations import user_path
from scripts._benchmark.options import add_images, add_outputs, add_rounds, check, count, values
from scripts._benchmark.rounds import add_values, make_record, table
from scripts._benchmark.training import Measured, add_run, add_step, measure_run, measure_step

# What each benchmark measures is imported where it starts: torch and timm take seconds, and a fresh
# process of `order` or `resume` imports this file again.


def main(arguments: list[str]) -> None:
    """Run `python scripts/benchmark.py ARGUMENTS`."""
    asked = _parse(arguments)
    if asked.benchmark == "compare":
        sys.exit(_compare(asked))
    if asked.benchmark == "page":
        from scripts._benchmark.page import make_page

        print(make_page(asked.folder), end="")
        return
    measure = {
        "step": measure_step,
        "run": measure_run,
        "variants": _measure_variants,
        "loader": _measure_loader,
        "order": _measure_order,
        "resume": _measure_resume,
        "faults": _measure_faults,
        "learn": _measure_learn,
    }
    shards = getattr(asked, "shards", None)
    with TemporaryDirectory() as folder:
        record, text = measure[asked.benchmark](asked, Path(folder))
    if shards == []:  # they were made on the spot, in a folder that is gone
        record["settings"]["shards"] = shards
    record["command"] = shlex.join(["python", "scripts/benchmark.py", *arguments])
    print(text)
    if asked.json is not None:
        with atomic_write(asked.json) as file:
            file.write(json.dumps(record, indent=1).encode() + b"\n")
    if getattr(asked, "png", None) is not None:
        from scripts._benchmark.chart import draw

        draw(record, asked.png)
    if record.get("num_failed"):  # of `learn`
        sys.exit(1)


def _compare(asked: argparse.Namespace) -> int:
    from scripts._benchmark import compare

    text, num_fallen = compare.compare(asked.recorded, asked.new)
    print(text)
    return 1 if num_fallen else 0


def _measure_variants(asked: argparse.Namespace, _: Path) -> Measured:
    from scripts._benchmark import variants

    options = variants.VariantOptions(**values(asked, variants.VariantOptions))
    speeds = variants.measure_variants(options)
    ratios = {text: (text, variants.BASELINE) for text in options.variant}
    record = make_record("variants", asdict(options), speeds, ratios)
    return record, table(record)


def _measure_loader(asked: argparse.Namespace, folder: Path) -> Measured:
    from scripts._benchmark import loader
    from scripts._benchmark.photographs import make_photograph_shard

    asked.shards = asked.shards or [make_photograph_shard(folder)]
    options = loader.LoaderOptions(**values(asked, loader.LoaderOptions))
    memory = loader.measure_memory(options) if options.epochs else None
    return loader.report(options, loader.measure_loader(options), memory)


def _measure_order(asked: argparse.Namespace, _: Path) -> Measured:
    from scripts._benchmark import order

    options = order.OrderOptions(**values(asked, order.OrderOptions))
    lookups, rest = order.measure_order(options)
    lower = set(order.RATIOS)
    record = make_record("order", asdict(options), lookups, order.RATIOS, lower) | rest
    costs = [
        f"{name:28}" + "".join(f"{value[key]:10.3f}" for key in ("median", "min", "max"))
        for name, value in rest["start"].items()
    ]
    return record, "\n".join(["in a fresh process", *costs, "", table(record)])


def _measure_resume(asked: argparse.Namespace, folder: Path) -> Measured:
    from scripts._benchmark import resume

    samples = asked.samples
    asked.shards = asked.shards or resume.make_tiny_shards(folder, samples)
    options = resume.ResumeOptions(**values(asked, resume.ResumeOptions))
    seconds, read = resume.measure_resume(options)
    names = [*resume.TIME_RATIOS, *resume.BYTES_RATIOS]
    lower = {name for name in names if name.startswith("resume_")}
    record = make_record("resume", asdict(options), seconds, resume.TIME_RATIOS, lower)
    add_values(record, read, resume.BYTES_RATIOS, lower)
    return record, table(record)


def _measure_faults(_: argparse.Namespace, folder: Path) -> Measured:
    from scripts._benchmark import faults

    found = faults.inject_faults(folder)
    return faults.make_faults_record(found), faults.faults_table(found)


def _measure_learn(asked: argparse.Namespace, _: Path) -> Measured:
    from scripts._ablate.learning import measure_learn

    return measure_learn(asked)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = "step|run|variants|loader|order|resume|faults|learn|compare|page"
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar=names)
    add_step(benchmarks)
    add_run(benchmarks)
    variants = benchmarks.add_parser("variants", help="a training step with other keys")
    option = variants.add_argument
    option("config", metavar="CONFIG.yaml", help="of pretraining: the baseline")
    text = "keys over it, apart by spaces; may be given again"
    option("--variant", metavar="KEYS", action="append", required=True, help=text)
    option("--batch-size", type=int, default=32, help="images (32)")
    option("--threads", type=int, default=0, help="CPU threads (0: all)")
    add_rounds(variants, seconds=5)
    loader = benchmarks.add_parser("loader", help="crops a second of one core, against others")
    add_images(loader, batch_size=64)
    add_rounds(loader, seconds=5)
    text = "watch a worker's memory for so many epochs (0: not at all)"
    loader.add_argument("--epochs", type=int, default=0, help=text)
    text = "names apart by commas, or none; default: all that are installed"
    loader.add_argument("--against", metavar="NAMES", help=text)
    order = benchmarks.add_parser("order", help="lookups anywhere in an epoch; reads nothing")
    option = order.add_argument
    option("--samples", type=count, default=1_000_000_000, help="(1e9)")
    option("--shards", type=count, default=100_000, help="(1e5)")
    option("--batch-size", type=int, default=2048, help="positions (2048)")
    option("--lookups", type=int, default=200, help="batches at each place (200)")
    add_rounds(order)
    resume = benchmarks.add_parser("resume", help="the first batch late in an epoch, and early")
    add_images(resume, batch_size=64)
    text = "how many are made without SHARDS (40000)"
    resume.add_argument("--samples", type=count, default=40_000, help=text)
    add_rounds(resume)
    faults = benchmarks.add_parser("faults", help="what is lost, beside plain webdataset")
    for benchmark in (variants, loader, order, resume):
        add_outputs(benchmark)
    add_outputs(faults, has_chart=False)
    learn = benchmarks.add_parser("learn", help="encoders after an equal time of pretraining")
    option = learn.add_argument
    option("overrides", nargs="*", metavar="key=value", help="of all rows, and of measures")
    option("--plan", default="learn", metavar="NAME|FILE.yaml", help="of configs/ablate (learn)")
    option("--minutes", type=float, help="of training a row (the plan's: 10)")
    option("--seeds", metavar="0,1,2", help="in place of the plan's")
    option("--against", metavar="ROW,ROW", help="rows beside ours (all that are installed)")
    option("--output", metavar="DIR", help="folder of the runs (runs/ablate/learn)")
    add_outputs(learn)
    compare = benchmarks.add_parser("compare", help="ratios that fell since they were recorded")
    option = compare.add_argument
    option("recorded", type=user_path, metavar="RECORDED", help="a record, or a folder of records")
    option("new", type=user_path, nargs="+", metavar="NEW", help="the same, measured now")
    page = benchmarks.add_parser("page", help="a folder's records as Markdown")
    page.add_argument(
        "folder", type=user_path, metavar="FOLDER", help="of records that --json wrote"
    )
    asked = parser.parse_args(arguments)
    check(asked)
    return asked


if __name__ == "__main__":
    run_entry_point(main)
