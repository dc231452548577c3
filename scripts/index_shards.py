"""Index shards that others made, and name what is wrong with them.

    python scripts/index_shards.py SHARDS [SHARDS ...] [--check-images] [--strict]

SHARDS are given as for data.shards: brace patterns, globs, folders, URLs; also folders of images
and lists of their paths, of which --check-images names what cannot be decoded. A run makes the
index of local shards by itself; for remote or many ones make it here, before, in parallel. It goes
where a run looks for it: beside the shards, or into ~/.cache where it cannot be written there. What
is indexed and has not changed is not read again, so after a stop the same command goes on.

Status 0: all shards can be used. 1: a shard cannot be used at all (compressed, no tar, keys that
occur twice, links, unreadable), or, with --strict, there is any other problem. 2: a mistake in the
arguments.
"""

import argparse
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import starmap
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from tqdm import tqdm

from data.disks import explain
from data.index.catalog import Catalog
from data.index.making import Remarks, UnreadableShard, in_any_order, run_jobs
from data.index.manifest import Manifest, Shard
from data.index.open import told_empty
from data.index.scan import UnusableShard
from data.index.tables import is_images
from data.processes import end_children, end_with_parent
from data.reading.check import unusable_members
from data.settings import OneLineParser, RunStopped, UserError, positive, run_entry_point
from data.shards import atomic_write
from data.storage.locations import Missing, Storage, is_remote, user_path
from data.text import count

_STORAGE = Storage()


@dataclass(frozen=True)
class Problem:
    """A problem of a shard.

    Attributes:
        shard: Its name.
        finding: In a line.
        is_unusable: No sample of it can be read.
        members: The members concerned, each with what is wrong.
    """

    shard: str
    finding: str
    is_unusable: bool
    members: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n  ".join([self.finding, *self.members])


def main(arguments: list[str]) -> None:
    """Run `python scripts/index_shards.py ARGUMENTS`."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    catalog = Catalog(options.shards, "SHARDS", _STORAGE)
    catalog.list_images()
    with _processes(options.processes) as executor:
        problems = _print_all(_index(catalog, executor, options))
        manifest = catalog.manifest()
        problems += _print_all(_check(manifest, executor, options))
    _report(problems, manifest, options.json)
    if any(problem.is_unusable or options.strict for problem in problems):
        sys.exit(1)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("shards", nargs="+", metavar="SHARDS", help="as for data.shards")
    option(
        "--check-images", action="store_true", help="read and decode all images, and name the bad"
    )
    option(
        "--channels", type=positive, default=3, help="data.channels, as which they are decoded (3)"
    )
    option("--strict", action="store_true", help="status 1 for any problem")
    option(
        "--again",
        action="store_true",
        help="read all shards again, and compare them with what was indexed",
    )
    number = os.cpu_count() or 1
    option("--processes", type=positive, default=number, help=f"how many read at once ({number})")
    option("--json", type=user_path, metavar="PATH", help="write the report there too")
    return parser.parse_args(arguments)


# ---------------------------------------------------------------- processes


@contextmanager
def _processes(number: int) -> Generator[Executor]:
    """Start processes that end with this one, however it ends."""
    # spawn: what fsspec or torch started here does not survive a fork
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(number, context, _start_process)
    try:
        yield executor
    except BrokenProcessPool as error:
        message = "a process was killed, perhaps for its memory; try again with fewer --processes"
        raise RunStopped(message) from error
    except BaseException:
        end_children()  # which may be in the midst of large shards
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    end_with_parent()


# ---------------------------------------------------------------- findings


def _print_all(problems: Iterator[Problem]) -> list[Problem]:
    """Print problems as they come, and list them."""
    listed: list[Problem] = []
    for problem in problems:
        tqdm.write(str(problem))
        listed.append(problem)
    return listed


def _index(catalog: Catalog, executor: Executor, options: argparse.Namespace) -> Iterator[Problem]:
    """Index what is missing; of remote shards, ask the server whether what is known still holds."""
    places = [
        place
        for place, location in enumerate(catalog.locations)
        if not is_images(location)
        and (options.again or is_remote(location) or catalog.is_missing(place))
    ]
    jobs = (catalog.job(place, again=options.again) for place in places)
    results, remarks = run_jobs(jobs, executor, options.processes), Remarks()
    for done in tqdm(results, "indexing", len(places), unit="shard", disable=None):
        if done.row is not None:
            catalog.put(done.job.place, done.row, done.folder)
        if done.note is not None:
            tqdm.write(done.note, sys.stderr)
        if done.error is not None:
            catalog.drop(done.job.place)
            yield _problem(done.job.name, done.error)
        remarks.add(done)
        if done.beside.doubtful is not None:
            yield Problem(done.job.name, f"shard {done.job.name}: {done.beside.doubtful}", False)
    if remarks.hidden is not None:
        print(remarks.hidden, file=sys.stderr)


def _problem(name: str, error: UserError | RunStopped) -> Problem:
    """Take an error of one shard as a finding; raise what would meet others too."""
    if isinstance(error, RunStopped) and not isinstance(error, Missing | UnreadableShard):
        raise error
    members = error.members if isinstance(error, UnusableShard) else ()
    return Problem(name, str(error), is_unusable=True, members=tuple(members))


def _check(
    manifest: Manifest, executor: Executor, options: argparse.Namespace
) -> Iterator[Problem]:
    """Name empty shards, and the members that cannot be used: of damaged shards, or of all."""
    for name in manifest.shards.empty:
        yield Problem(name, told_empty([name]), False)
    decodes: bool = options.check_images
    shards = manifest.shards if decodes else manifest.shards.damaged
    check = partial(_check_shard, decodes=decodes, channels=options.channels)
    results = in_any_order(check, shards, executor, options.processes)
    for problem in tqdm(results, "checking", len(shards), unit="shard", disable=None):
        if problem is not None:
            yield problem


def _check_shard(shard: Shard, *, decodes: bool, channels: int) -> Problem | None:
    try:
        members = unusable_members(shard, _STORAGE, decodes=decodes, channels=channels)
    except OSError as error:
        members = [f"cannot be read on: {explain(error)}"]
    if shard.damage is None and not members:
        return None
    what, noun = (f"shard {shard.name}", "member") if shard.is_tar else (shard.name, "image")
    number = f"{count(len(members), noun)} cannot be used" if members else None
    finding = "; ".join(part for part in (shard.damage, number) if part is not None)
    return Problem(shard.name, f"{what}: {finding}", False, tuple(members))


# ---------------------------------------------------------------- report


def _report(problems: list[Problem], manifest: Manifest, path: Path | None) -> None:
    num_bytes = int(manifest.shards.num_bytes.sum())
    num_folders = len(manifest.shards.tables)
    num_tars = len(manifest.shards) - num_folders
    kinds = [(num_tars, "shard")] * (num_tars > 0 or not num_folders)
    kinds += [(num_folders, "folder or list", "folders or lists")] * (num_folders > 0)
    counts = [*kinds, (manifest.num_samples, "sample"), (num_bytes, "byte")]
    print("indexed:", ", ".join(starmap(count, counts)))
    print(summary(problems))
    if path is None:
        return
    report = {
        "shards": len(manifest.shards),
        "samples": manifest.num_samples,
        "bytes": num_bytes,
        "problems": [asdict(problem) for problem in sorted(problems, key=lambda p: p.shard)],
    }
    with atomic_write(path) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")


def summary(problems: list[Problem]) -> str:
    """Return how many shards have problems, and what that means."""
    num = len({problem.shard for problem in problems})
    num_unusable = len({problem.shard for problem in problems if problem.is_unusable})
    if num == 0:
        return "no problems"
    is_one = num == 1
    if num_unusable == 0:
        meaning = f"{'it' if is_one else 'all'} can be used, less what is named above"
    elif num_unusable == num:
        meaning = f"{'it' if is_one else 'they'} cannot be used at all"
    else:
        meaning = f"{num_unusable:,} of them cannot be used at all"
    return f"{count(num, 'shard')} {'has' if is_one else 'have'} problems; {meaning}"


if __name__ == "__main__":
    run_entry_point(main)
