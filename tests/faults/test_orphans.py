"""However an entry point ends, nothing that it started is left, and what it wrote can be used.

The long form is marked `faults`: `make test-faults`.
"""

import os
import random
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import pretrain.run
from data.index.open import open_manifest
from data.shards import ImageFile, write_shard
from data.storage.locations import take_lock
from pretrain.encoder import load_encoder
from pretrain.records import checkpoint
from tests.conftest import make_png
from tests.launching import FAIL, ROOT, Family, Forked
from tests.servers import FlakyServer, flaky_http

pytestmark = pytest.mark.timeout(2400)

_PATIENCE = 5.0  # seconds after the end of the one that was started
_STEP = 60.0  # seconds in which a step, a commit or a line is over, also beside other tests
ENCODER = [
    "encoder.name=vit_small_patch16_224",
    "encoder.depth=2",
    "data.image_size=64",
    "data.workers=2",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write enough images that a pass over them takes seconds."""
    folder = tmp_path_factory.mktemp("photos")
    for name, first in (("train-0", 0), ("train-1", 300), ("val-0", 600)):
        images = (
            ImageFile(f"{n:04d}", "png", make_png(n, (64, 64)), n % 3)
            for n in range(first, first + 300)
        )
        write_shard(folder / f"{name}.tar", images)
    open_manifest(folder, "shards")
    return folder


@pytest.fixture(scope="module")
def server(photos: Path) -> Iterator[FlakyServer]:
    with flaky_http(photos) as server:
        yield server


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrain for a step."""
    run = tmp_path_factory.mktemp("trained")
    more = ["optim.steps=1", "optim.warmup_steps=0", "optim.batch_size=8", "run.threads=1"]
    data = [f"data.shards={photos}/train-*.tar", *ENCODER, "data.workers=0"]
    pretrain.run.main([*data, *more, f"run.dir={run}"])
    return run


# ---------------------------------------------------------------- what is started

LONG = ["optim.steps=100000", "run.threads=1", "run.log_every=1", "run.checkpoint_every=3"]
Command = Callable[[Path, Path, str, Path], list[str]]  # photos, out, the server's URL, a run


def _labelled(photos: Path) -> list[str]:
    return [f"data.train={photos}/train-*.tar", f"data.val={photos}/val-0.tar", *ENCODER]


def _pretrain(photos: Path, out: Path, *_: object) -> list[str]:
    data = f"data.shards={photos}/train-*.tar"
    return ["pretrain/run.py", data, *ENCODER, *LONG, "optim.batch_size=16", f"run.dir={out}"]


def _validating(photos: Path, out: Path, *_: object) -> list[str]:
    val = [f"data.val_shards={photos}/val-0.tar", "run.eval_every=2"]
    return [*_pretrain(photos, out), *val]


def _ahead(photos: Path, out: Path, url: str, _: Path) -> list[str]:
    remote = f"data.shards={url}/train-{{0..1}}.tar"
    return [*_pretrain(photos, out), remote, f"data.cache_dir={out}.cache"]


def _piped(photos: Path, out: Path, *_: object) -> list[str]:
    """Its commands go on for ever, and some write nothing."""
    shard = shlex.quote(str(photos / "train-0.tar"))
    sources = [f"pipe:cat {shard} | cat; sleep 1000", f"pipe:sleep 1000 | cat {shard} - | cat"]
    read = ["data.read=sequential", "data.allow_pipe=true", f"data.shards={sources}"]
    return [*_pretrain(photos, out), *read]


def _finetune(photos: Path, out: Path, *_: object) -> list[str]:
    own = ["encoder.init=none", "optim.batch_size=16", f"run.dir={out}"]
    return ["finetune/run.py", *_labelled(photos), *LONG, *own]


def _fewshot(photos: Path, out: Path, *_: object) -> list[str]:
    own = ["fewshot.threads=1", "fewshot.batch_size=16", f"fewshot.dir={out}", "encoder.init=none"]
    return ["finetune/fewshot.py", *_labelled(photos), *own, "encoder.depth=8"]


def _probe(photos: Path, out: Path, *_: object) -> list[str]:
    own = ["probe.threads=1", "probe.batch_size=16", f"probe.dir={out}", "encoder.init=none"]
    return ["finetune/probe.py", *_labelled(photos), *own, "encoder.depth=8"]


def _index(photos: Path, out: Path, *_: object) -> list[str]:
    own = ["--again", "--check-images", "--processes", "2"]
    return ["scripts/index_shards.py", str(photos), *own]


def _ablate(photos: Path, out: Path, *_: object) -> list[str]:
    base, plan = out.with_suffix(".base.yaml"), out.with_suffix(".yaml")
    base.write_text("optim: {weight_decay: 0.05}\n")
    own = [*ENCODER, *LONG, "optim.batch_size=16", f"data.shards={photos}/train-*.tar"]
    common = {key: yaml.safe_load(value) for key, _, value in (arg.partition("=") for arg in own)}
    content = {"config": str(base), "common": common, "seeds": [0], "rows": {"one": {"set": {}}}}
    plan.write_text(yaml.safe_dump(content))
    return ["scripts/ablate.py", str(plan), f"--output={out}"]


def _report(_: Path, out: Path, __: str, run: Path) -> list[str]:
    return ["scripts/report.py", str(run), "--output", f"{out}.html"]


COMMANDS: dict[str, Command] = {
    "pretrain": _pretrain,
    "validating": _validating,
    "read-ahead": _ahead,
    "pipe": _piped,
    "finetune": _finetune,
    "fewshot": _fewshot,
    "probe": _probe,
    "index_shards": _index,
    "report": _report,
    "ablate": _ablate,
}
WAYS = ("SIGTERM", "SIGKILL", "SIGINT", "error")

# ---------------------------------------------------------------- how it ends


def end(process: Forked, way: str) -> None:
    """Ctrl-C reaches the whole group, the others one process."""
    if way == "SIGINT" and os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(FAIL if way == "error" else signal.Signals[way])


def wait_for(family: Family, is_there: Callable[[], bool], seconds: float) -> bool:
    """Wait, and look at who is there meanwhile."""
    deadline = time.monotonic() + seconds
    while not is_there() and time.monotonic() < deadline:
        family.look()
        time.sleep(0.02)
    return is_there()


def hunt(command: list[str], way: str, rng: random.Random, log: Path, out: Path) -> str:
    """Start it, end it at a random moment, and look for what is left."""
    home = {**os.environ, "XDG_CACHE_HOME": str(log.parent), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        script = [sys.executable, str(ROOT / command[0]), *command[1:]]
        process = Forked(script, stdout=file, stderr=file, start_new_session=True, env=home)
    family = Family(process.pid)
    if rng.random() < 0.7:  # else soon, while it imports, reads or starts
        wait_for(family, lambda: process.returncode is not None or bool(family.alive()[1:]), 20)
    wait_for(family, lambda: process.returncode is not None, rng.uniform(0, 3))
    is_alive, num_children = process.returncode is None, len(family.alive())
    if is_alive:
        end(process, way)
    about = f"{command[0]} by {way}, with {num_children} processes: "
    has_ended = wait_for(family, lambda: process.returncode is not None, _STEP)
    assert has_ended, about + log.read_text()
    is_gone = wait_for(family, lambda: not family.alive(), _PATIENCE)
    left = family.alive()
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert is_gone, f"{about}{left} left; {log.read_text()}"
    check_run(out)
    return way if is_alive else "ended before"


def check_run(out: Path) -> None:
    """The folder is free, and its newest checkpoint loads."""
    for lock in out.rglob(".lock"):
        os.close(take_lock(lock))
    if (out / "checkpoints").is_dir() and checkpoint.recover_newest(out) is not None:
        load_encoder(out)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (("pretrain", "fewshot", "index_shards"), 6),
        pytest.param(tuple(COMMANDS), 100, marks=pytest.mark.faults),
    ],
    ids=["short", "long"],
)
def test_nothing_is_left(
    tmp_path: Path,
    photos: Path,
    server: FlakyServer,
    trained: Path,
    names: tuple[str, ...],
    count: int,
) -> None:
    rng, ends = random.Random(count), Counter[str]()
    for number in range(count):
        name, way = names[number % len(names)], WAYS[number // len(names) % len(WAYS)]
        out, log = tmp_path / f"{number}-{name}", tmp_path / f"{number}.log"
        command = COMMANDS[name](photos, out, server.url, trained)
        ends[hunt(command, way, rng, log, out)] += 1
    print(f"hunts: {ends.total()}; {dict(ends)}")
    assert ends["ended before"] < count / 2  # else little was shown
