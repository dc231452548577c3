"""Killed, resumed, on other numbers of ranks: the same samples, the same bytes, none lost.

The long forms are marked `faults`: `make test-faults`.
"""

import hashlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import scripts.verify_run
from data.index.open import open_manifest
from pretrain.encoder import load_encoder
from pretrain.records.logs import read_records
from pretrain.training.config import RECOMPUTATIONS
from tests.launching import Ranks, run_ranks
from tests.servers import FlakyServer, at_random, flaky_http

STEPS_PER_EPOCH = 3  # 36 images in batches of 12, which 1, 2, 3, 4 and 6 ranks can share
STEPS = 24

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def arguments(tiny: list[str]) -> list[str]:
    """Give the arguments of a run of 8 epochs that commits at each fourth step."""
    more = ["optim.batch_size=12", f"optim.steps={STEPS}", "run.checkpoint_every=4"]
    return [*tiny, *more, "data.max_bad_ratio=1"]


def figures(run: Path) -> list[dict[str, Any]]:
    """Read what a run logged, but for its speed."""
    return [
        {name: value for name, value in record.items() if not name.startswith("speed/")}
        for record in read_records(run / "metrics.jsonl")
    ]


def global_batches(run: Path) -> dict[int, list[str]]:
    """Read the keys of each step, over the ranks that took part in it."""
    steps: dict[int, list[str]] = {}
    for path in sorted((run / "trace").iterdir(), key=lambda path: int(path.stem.split("-")[1])):
        for record in read_records(path):
            steps.setdefault(record["step"], []).extend(record["keys"])
    return dict(sorted(steps.items()))


def weights_hash(run: Path, step: int) -> str:
    """Hash the weights and the optimizer of a checkpoint."""
    digest = hashlib.sha256()
    for name in ("model", "optimizer"):
        digest.update((run / f"checkpoints/step-{step:08d}/{name}.safetensors").read_bytes())
    return digest.hexdigest()


def assert_exactly_once(run: Path, steps: int, per_epoch: int) -> None:
    """Each good sample is in one batch of each epoch, and the bad one is named in each."""
    batches = global_batches(run)
    assert list(batches) == list(range(1, steps + 1))
    ledger = read_records(run / "bad_samples.jsonl")
    for epoch in range(steps // per_epoch):
        own = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        keys = list(chain(*(batches[step] for step in own)))
        named = [f"{line['shard']}/{line['key']}" for line in ledger if line["epoch"] == epoch]
        assert len(keys) == len(set(keys)) == 35
        assert named == ["train-1.tar/022"]
        assert named[0] not in keys


def stop_after(ranks: Ranks, run: Path, step: int, end: Callable[[Ranks], None]) -> None:
    """Wait until rank 0 has traced a step, then end the run in the given way."""
    trace = run / "trace/rank-0.jsonl"
    deadline = time.monotonic() + 120
    while not trace.exists() or not any(r["step"] >= step for r in read_records(trace)):
        assert ranks.is_alive, ranks.output[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    end(ranks)


def kill(ranks: Ranks) -> None:
    ranks.kill()


def terminate(ranks: Ranks) -> None:
    """Ask one rank alone to leave: all of them do."""
    os.kill(int(ranks.processes[-1].pid or 0), signal.SIGTERM)
    assert set(ranks.wait()) == {75}, ranks.output[-3000:]


# ---------------------------------------------------------------- bitwise_resume, double_resume


FREE = ["encoder.sees_masked=false", "target.kind=normalised_pixels"]
WORDS = [
    "encoder.sees_masked=false",
    "decoder.attention=cross",
    "corruption.predicted_ratio=0.5",
    "target.kind=words",
    "target.num_words=16",
]
NARROW = ["run.precision=bf16", "run.bf16_residual=true"]
WAYS: dict[str, tuple[int, list[str]]] = {
    "ddp2-accumulation": (2, ["run.micro_batch_size=2"]),
    "ddp3": (3, []),
    "ddp4": (4, []),
    "fsdp2": (2, ["run.parallel=fsdp"]),
    "fsdp2-accumulation": (2, ["run.parallel=fsdp", "run.micro_batch_size=3"]),
    "compile": (1, ["run.compile=true"]),
    "compile-ddp2": (2, ["run.compile=true"]),
    "fsdp2-narrow": (2, ["run.parallel=fsdp", *NARROW]),
    "compile-fsdp2": (2, ["run.compile=true", "run.parallel=fsdp"]),
    "ema-sgd": (1, ["optim.ema=0.9", "optim.algorithm=sgd"]),
    "fsdp2-recompute": (
        2,
        ["run.parallel=fsdp", "run.grad_checkpointing=full", "encoder.args.drop_path_rate=0.2"],
    ),
    "compile-recompute": (1, ["run.compile=true", "run.grad_checkpointing=selective"]),
    "fsdp2-sgd": (2, ["run.parallel=fsdp", "optim.algorithm=sgd"]),
    "ddp3-free": (3, [*FREE, *NARROW, "encoder.position=learned_2d", "corruption.kind=coarse"]),
    "fsdp2-relative": (2, [*WORDS, "run.parallel=fsdp", "encoder.position=relative"]),
    "fsdp2-shared": (
        2,
        [
            "run.parallel=fsdp",
            "encoder.position=learned_2d",
            "encoder.position_at=every_layer_shared",
            "target.kind=pixels",
        ],
    ),
}
SHORT = {"ddp3-free", "fsdp2-relative"}


@pytest.mark.parametrize(
    "way",
    [name if name in SHORT else pytest.param(name, marks=pytest.mark.faults) for name in WAYS],
)
def test_bitwise_resume(tmp_path: Path, arguments: list[str], way: str) -> None:
    """Killed twice in one epoch and asked to leave in another, it ends as if it had not been."""
    world, more = WAYS[way]
    more = [*arguments, *more, "run.checkpoint_every=1"]
    run_ranks([*more, f"run.dir={tmp_path}/whole"], world, tmp_path / "logs")
    cut = tmp_path / "cut"
    for step, end in ((4, kill), (5, kill), (11, terminate)):
        with Ranks([*more, f"run.dir={cut}"], world, tmp_path / "logs") as ranks:
            stop_after(ranks, cut, step, end)
    output = run_ranks([*more, f"run.dir={cut}"], world, tmp_path / "logs")
    assert "resuming" in output
    assert figures(cut) == figures(tmp_path / "whole")
    assert global_batches(cut) == global_batches(tmp_path / "whole")
    assert weights_hash(cut, STEPS) == weights_hash(tmp_path / "whole", STEPS)
    assert_exactly_once(cut, STEPS, STEPS_PER_EPOCH)


def test_what_stops_the_main_process_stops_all(tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "served").mkdir()
    with flaky_http(tmp_path / "served") as server:
        shards = f"data.shards={server.url}/nothing.tar"
        run = [*tiny, shards, f"run.dir={tmp_path}/run"]
        with Ranks(run, 2, tmp_path / "logs") as ranks:
            assert ranks.wait() == [1, 1], ranks.output
            output = ranks.output
    assert output.count("stopped: ") == 1
    assert "nothing.tar does not exist (status 404)" in output
    assert "Traceback" not in output


def test_a_run_moves_between_ddp_and_fsdp(tmp_path: Path, arguments: list[str]) -> None:
    """A checkpoint holds whole tensors, however the model was cut; timm loads the encoder."""
    run = tmp_path / "moved"
    more = [*arguments, "run.checkpoint_every=1", f"run.dir={run}"]
    for step, way in ((4, "fsdp"), (9, "ddp")):
        with Ranks([*more, f"run.parallel={way}"], 2, tmp_path / "logs") as ranks:
            stop_after(ranks, run, step, terminate)
    run_ranks([*more, "run.parallel=fsdp"], 2, tmp_path / "logs")
    run_ranks([*arguments, f"run.dir={tmp_path}/one"], 1, tmp_path / "logs")
    for found, other in zip(figures(run), figures(tmp_path / "one"), strict=True):
        assert found["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)
        assert found["optim/grad_norm"] == pytest.approx(other["optim/grad_norm"], rel=1e-3)
    moved, expected = load_encoder(run), load_encoder(tmp_path / "one")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(moved.state_dict()[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.faults
def test_computing_blocks_again_changes_nothing_on_cut_models(
    tmp_path: Path, arguments: list[str]
) -> None:
    way = [*arguments, "run.parallel=fsdp", "encoder.args.drop_path_rate=0.2"]
    for name in RECOMPUTATIONS:
        more = [f"run.grad_checkpointing={name}", f"run.dir={tmp_path}/{name}"]
        run_ranks([*way, *more], 2, tmp_path / "logs")
    plain = tmp_path / "none"
    for other in (tmp_path / "selective", tmp_path / "full"):
        assert figures(other) == figures(plain)
        assert weights_hash(other, STEPS) == weights_hash(plain, STEPS)


# ---------------------------------------------------------------- elastic_chain


@pytest.mark.parametrize(
    "chain_of",
    [
        [(3, 0), (1, 2)],
        pytest.param([(4, 0), (3, 5), (1, 1), (6, 2)], marks=pytest.mark.faults),
    ],
    ids=["short", "4-3-1-6"],
)
def test_elastic_chain(
    tmp_path: Path, arguments: list[str], chain_of: list[tuple[int, int]]
) -> None:
    """Other ranks and workers, in mid-epoch and at its edge: the same keys in each batch."""
    run_ranks([*arguments, f"run.dir={tmp_path}/one"], 1, tmp_path / "logs")
    run = tmp_path / "chain"
    more = [*arguments, "run.checkpoint_every=1", f"run.dir={run}"]
    stops = [4, 9, 13]  # 9 ends an epoch
    for number, (world, workers) in enumerate(chain_of):
        with Ranks([*more, f"data.workers={workers}"], world, tmp_path / "logs") as ranks:
            if number < len(chain_of) - 1:
                stop_after(ranks, run, stops[number], terminate)
            else:
                assert set(ranks.wait()) == {0}, ranks.output[-3000:]
    expected = global_batches(tmp_path / "one")
    assert global_batches(run) == expected
    assert_exactly_once(run, STEPS, STEPS_PER_EPOCH)
    for found, other in zip(figures(run), figures(tmp_path / "one"), strict=True):
        assert found["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)


# ---------------------------------------------------------------- kill9_anywhere


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def await_moment(ranks: Ranks, run: Path, rng: random.Random) -> str:
    """Wait for a random moment: soon, in a save, at a rename, or at an epoch's end."""
    moment = rng.choice(["soon", "save", "rename", "epoch"])
    soon = time.monotonic() + rng.uniform(0.0, 2.5)
    known = names_in(run / "checkpoints")
    trace = run / "trace/rank-0.jsonl"
    size = trace.stat().st_size if trace.exists() else 0
    while ranks.is_alive:
        new = names_in(run / "checkpoints") - known
        if moment == "soon" and time.monotonic() > soon:
            break
        if moment == "save" and any(name.startswith(".writing") for name in new):
            time.sleep(rng.uniform(0, 0.01))
            break
        if moment == "rename" and any(name.startswith("step") for name in new):
            break
        if moment == "epoch" and trace.exists() and trace.stat().st_size > size:
            size = trace.stat().st_size
            if read_records(trace)[-1]["step"] % STEPS_PER_EPOCH == 0:
                break
        time.sleep(0.0005)
    return moment


@pytest.fixture(scope="module")
def server(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlakyServer]:
    """Serve the shards, with their index, over HTTP; one request in twenty fails."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(shards, folder, dirs_exist_ok=True)
    open_manifest(folder, "shards")
    with flaky_http(folder) as server:
        server.pick = at_random(seed=0, ratio=0.05)
        yield server


@pytest.mark.parametrize("num_kills", [4, pytest.param(200, marks=pytest.mark.faults)])
@pytest.mark.timeout(2400)
def test_kill9_anywhere(
    tmp_path: Path, arguments: list[str], server: FlakyServer, num_kills: int
) -> None:
    """Any process dies at any moment: nothing is lost, the end is that of a run never killed.

    The shards are remote, so that there is a process that reads ahead; the run that is never killed
    reads local ones.
    """
    steps = num_kills * 12
    more = [*arguments, f"optim.steps={steps}", "run.checkpoint_every=2", "data.workers=1"]
    more += ["run.keep_checkpoints=2", "run.eval_every=0", "run.log_every=5"]
    run_ranks([*more, f"run.dir={tmp_path}/whole"], 2, tmp_path / "logs", timeout=600)
    remote = [f"data.shards={server.url}/train-{{0..2}}.tar", f"data.cache_dir={tmp_path}/cache"]
    run, rng = tmp_path / "killed", random.Random(num_kills)
    more += [*remote, f"run.dir={run}"]
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    moments: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    while moments.total() < num_kills:
        with Ranks(more, 2, tmp_path / "logs", environment=home) as ranks:
            moment = await_moment(ranks, run, rng)
            assert ranks.is_alive, f"ended after {moments}: {ranks.output[-3000:]}"
            number = rng.randrange(2)
            rank, *children = ranks.members()[number]
            victim = rng.choice([rank, *children])
            kind = "rank" if victim == rank else "loader"
            if number == 0 and children and victim == min(children):  # the first that was started
                kind = "prefetcher"
            os.kill(victim, signal.SIGKILL)
            if kind == "prefetcher":  # the run outlives it: let it work, then end the run too
                time.sleep(rng.uniform(0, 0.5))
                assert ranks.is_alive, ranks.output[-3000:]
                ranks.kill()
            assert ranks.wait() != [0, 0], f"ended after {moments}"
            moments[moment] += 1
            kinds[kind] += 1
    run_ranks(more, 2, tmp_path / "logs", timeout=600, environment=home)
    print(f"kills survived: {moments.total()}; {dict(moments)}; {dict(kinds)}")
    print(f"requests: {len(server.seen)}, of which failed: {server.num_faults()}")
    scripts.verify_run.main([str(run)])  # raises SystemExit where a sample is lost or repeated
    assert global_batches(run) == global_batches(tmp_path / "whole")
    assert_exactly_once(run, steps, STEPS_PER_EPOCH)
    assert figures(run) == figures(tmp_path / "whole")
    assert weights_hash(run, steps) == weights_hash(tmp_path / "whole", steps)
