"""Faults injected, and what was lost: ours beside plain webdataset, given the same faulty files."""

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import which
from typing import Any

from data.index.open import open_manifest
from data.settings import require
from scripts._benchmark import faulty_files as files
from scripts._benchmark.faulty_server import FaultyServer, serve
from scripts._benchmark.interrupted import (
    environment,
    our_steps,
    read_killed,
    read_ours_on_ranks,
    read_resampled_on_ranks,
    read_webdataset_on_ranks,
    webdataset_steps,
)
from scripts._benchmark.readings import Name, Outcome, Reading, judge, read_ours, read_webdataset
from scripts._benchmark.rounds import machine

_HOW = """\
Each fault is put into fresh shards that were indexed before. Then each side reads an epoch in a run
that starts after the fault, or, where it says "in a run", in one that had opened them before. Read:
with the pixels and the label that the same side saw before the fault. Named: in the ledger, by key
or, of a damaged shard, whole. Plain webdataset 1.0.2 is used as its README shows, .decode("pil")
and .to_tuple(), with handler=warn_and_continue at each stage; a warning tells of all that is lost
of the shard that it names, and of all shards if it names none. It reads http:// with curl, its own
opener; ours asks for ranges, nothing read ahead."""
_IN_A_RUN = "in a run"
_KILLED = (
    "SIGKILL after 5 of 10 steps, checkpoint after 4; webdataset can only start the epoch anew"
)


@dataclass(frozen=True)
class Finding:
    """What a fault did to both sides.

    Attributes:
        fault: What was done.
        samples: In the shards before it.
        ours: What became of them here.
        webdataset: And there.
        note: What the numbers do not say.
    """

    fault: str
    samples: int
    ours: Outcome
    webdataset: Outcome
    note: str = ""


def inject_faults(folder: Path) -> list[Finding]:
    """Make small shards in a folder, inject each fault, and read them both ways.

    Raises:
        UserError: curl, with which webdataset reads http://, is not installed.
    """
    require(which("curl") is not None, "faults needs curl, webdataset's opener of http://")
    makers = [_file_faults, _http_faults, _code_fault, _kill_fault, _rank_faults]
    with _quiet(), _own_environment(folder / "cache"):
        return [finding for make in makers for finding in make(folder)]


@contextmanager
def _quiet() -> Generator[None]:
    """Keep what is said of the faults to the table."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create 3 worker")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _own_environment(folder: Path) -> AbstractContextManager[None]:
    """Ask this machine's server without a proxy, and leave the user's cache alone."""
    return environment(no_proxy="127.0.0.1", NO_PROXY="127.0.0.1", XDG_CACHE_HOME=str(folder))


def _references(shards: list[str]) -> tuple[dict[Name, str], dict[Name, str]]:
    """Read intact shards both ways, which also indexes them."""
    ours, theirs = dict(read_ours(shards).seen), dict(read_webdataset(shards).seen)
    assert ours.keys() == theirs.keys(), "both read all of what is intact"
    return ours, theirs


def _file_faults(folder: Path) -> Generator[Finding]:
    equal_keys = {"has_equal_keys": True}
    faults: list[tuple[str, Callable[[list[Path]], None], dict[str, Any]]] = [
        ("none", lambda _: None, {}),
        ("shard cut between two samples", files.cut_between_samples, {}),
        (f"shard cut between two samples, {_IN_A_RUN}", files.cut_between_samples, {}),
        ("shard cut inside an image", files.cut_inside_image, {}),
        ("shard cut to 0 bytes", files.cut_to_nothing, {}),
        ("a bit flipped in a header", files.flip_in_header, {}),
        ("a bit flipped in a PNG", files.flip_in_image, {}),
        ("a bit flipped in a JPEG", files.flip_in_image, {"extension": "jpg"}),
        ("cut in a sample, next shard has its key", files.cut_inside_first_sample, equal_keys),
    ]
    for number, (fault, damage, options) in enumerate(faults):
        paths = files.write_shards(folder / f"file-{number}", **options)
        shards = [str(path) for path in paths]
        ours, theirs = _references(shards)
        opened = open_manifest(shards, "data.shards") if fault.endswith(_IN_A_RUN) else None
        damage(paths)
        outcomes = judge(ours, read_ours(shards, opened)), judge(theirs, read_webdataset(shards))
        yield Finding(fault, len(ours), *outcomes)


def _http_faults(folder: Path) -> Generator[Finding]:
    faults: dict[str, Callable[[FaultyServer, Path], None]] = {
        "http: an answer ends between two samples": lambda server, path: server.short.update(
            {path.name: files.offset_between_samples(path)}
        ),
        "http: an answer ends in its middle": lambda server, path: server.short.update(
            {path.name: path.stat().st_size // 2}
        ),
        "http: 503 for the first request": lambda server, path: server.unavailable.update(
            {path.name: 1}
        ),
    }
    for number, (fault, fail) in enumerate(faults.items()):
        paths = files.write_shards(folder / f"http-{number}")
        open_manifest([str(path) for path in paths], "data.shards")
        with serve(paths[0].parent) as server:
            shards = [server.url(path.name) for path in paths]
            ours, theirs = _references(shards)
            readings: list[Reading] = []
            for read in (read_ours, read_webdataset):
                fail(server, paths[1])
                readings.append(read(shards))
                assert server.is_spent, f"{fault}: {read.__name__} did not meet it"
            outcomes = judge(ours, readings[0]), judge(theirs, readings[1])
            yield Finding(fault, len(ours), *outcomes)


def _code_fault(folder: Path) -> Generator[Finding]:
    paths = files.write_shards(folder / "code", num_shards=1)
    marker = folder / "code-ran"
    files.add_code(marker)(paths)
    shards = [str(path) for path in paths]
    ran: list[str] = []
    readings: list[Reading] = []
    for read in (read_ours, read_webdataset):
        readings.append(read(shards))
        ran.append("ran" if marker.exists() else "did not run")
        if marker.exists():
            marker.rmdir()
    ours, theirs = (judge(dict(reading.seen), reading) for reading in readings)
    note = f"code {ran[0]} in ours, {ran[1]} in webdataset"
    yield Finding("a pickle among the members", len(readings[0].seen), ours, theirs, note)


def _kill_fault(folder: Path) -> Generator[Finding]:
    shards = [str(path) for path in files.write_shards(folder / "kill", num_shards=5)]
    reference = dict.fromkeys(_references(shards)[0], "")
    ours, theirs = (
        judge(reference, read_killed(steps, shards, len(reference)))
        for steps in (our_steps, webdataset_steps)
    )
    yield Finding("killed in mid-epoch, started again", len(reference), ours, theirs, _KILLED)


def _rank_faults(folder: Path) -> Generator[Finding]:
    shards = [str(path) for path in files.write_shards(folder / "ranks", num_shards=5)]
    reference = dict.fromkeys(_references(shards)[0], "")
    reading, our_counts = read_ours_on_ranks(shards)
    ours = judge(reference, reading)
    split = read_webdataset_on_ranks(shards)
    resampled = read_resampled_on_ranks(shards, len(reference))
    for how, (reading, counts) in {"split_by_node": split, "resampled": resampled}.items():
        note = f"samples a rank: ours {_join(our_counts)}, webdataset {_join(counts)}"
        fault = f"5 shards, 2 ranks, 3 workers: {how}"
        yield Finding(fault, len(reference), ours, judge(reference, reading), note)


def _join(counts: list[int]) -> str:
    return " and ".join(map(str, counts))


# ---------------------------------------------------------------- what is written


def make_faults_record(findings: list[Finding]) -> dict[str, Any]:
    """Make what `--json` writes."""
    return {
        "benchmark": "faults",
        "how": _HOW,
        "faults": [asdict(finding) for finding in findings],
        "machine": machine(),
    }


def faults_table(findings: list[Finding]) -> str:
    """Lay findings out for reading."""
    width = max(len(finding.fault) for finding in findings)
    left, right = 21, 49
    lines = [
        f"{'':{width}}{'':9}{'ours':>{left}}{'webdataset':>{right}}",
        f"{'fault':{width}}{'samples':>9}{'read':>6}{'named':>7}{'unnamed':>8}"
        f"{'read':>7}{'told':>6}{'in silence':>12}{'mixed up':>10}{'repeated':>10}{'said':>6}",
    ]
    for finding in findings:
        ours, theirs = finding.ours, finding.webdataset
        unnamed = ours.silent + ours.mixed_up + ours.invented + ours.repeated
        lines.append(
            f"{finding.fault:{width}}{finding.samples:9}{ours.read:6}{ours.told:7}{unnamed:8}"
            f"{theirs.read:7}{theirs.told:6}{theirs.silent:12}"
            f"{theirs.mixed_up + theirs.invented:10}{theirs.repeated:10}{theirs.num_messages:6}"
        )
    notes = [f"{finding.fault}: {finding.note}" for finding in findings if finding.note]
    return "\n".join([*lines, "", *notes, "", _HOW])
