"""Twelve steps of each kind of run, at two commits: are they equal to the bit?

    python tests/move/runs.py prepare DATA --source CIFAR10_SHARDS --checkout OLD
    python tests/move/runs.py whole  DATA OUT --checkout OLD      (never stopped)
    python tests/move/runs.py killed DATA OUT --checkout OLD      (SIGKILL once step 6 is committed)
    python tests/move/runs.py finish DATA OUT --checkout NEW --begun KILLED
    python tests/move/runs.py compare OUT OUT                     (or a folder that `finish` made)

A checkout is a folder with the repository and its .venv. `--only` takes names from RUNS and MORE,
`--workers` 0 or 2 or both. Compared are metrics.jsonl without `speed/`, every other file of the run
by sha256 (model, optimizer, state and encoder of each checkpoint, traces, shards.jsonl, config.yaml
without run.dir), the names of all files, and the lines that were printed without rates and paths.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from hashlib import sha256
from pathlib import Path

SHARDS = (("train-000000", 320), ("train-000001", 320), ("test-000000", 128))
COMMON = [
    "run.threads=1",
    "run.checkpoint_every=3",
    "run.keep_checkpoints=0",
    "run.log_every=1",
    "run.eval_every=6",
    "optim.steps=12",
    "optim.batch_size=16",
    "optim.warmup_steps=3",
]
CIFAR = ["data.shards=shards/cifar10/train-*.tar", "data.val_shards=shards/cifar10/test-*.tar"]
TINY = ["encoder.embed_dim=32", "encoder.depth=2", "encoder.num_heads=2"]
PROBE = [
    "probe.train=shards/cifar10/train-*.tar",
    "probe.val=shards/cifar10/test-*.tar",
    "probe.every=6",
    "probe.shots=[1,5]",
]
MASKS = ["configs/pretrain/cifar10-mask-tokens.yaml", *CIFAR, *TINY]
LABELS = ["data.train=shards/cifar10/train-*.tar", "data.val=shards/cifar10/test-*.tar"]

RUNS: dict[str, list[str]] = {
    "demo": ["configs/pretrain/demo.yaml", *TINY],
    "mask-tokens": [*MASKS, *PROBE, "data.trace=true"],
    "words": ["configs/pretrain/cifar10.yaml", *CIFAR, *TINY, "target.num_words=32"],
    "block": [*MASKS, "corruption.kind=block", "corruption.min_block=4", "optim.ema=0.9"],
    "coarse": [*MASKS, "corruption.kind=coarse", "target.kind=pixels"],
    "relative": [*MASKS, "encoder.position=relative", "target.kind=normalised_pixels"],
    "sincos_2d": [*MASKS, "encoder.position=sincos_2d", "encoder.position_at=every_layer"],
    "hybrid": [*MASKS, "encoder.stem=resnet10t", "run.grad_checkpointing=selective"],
    "finetune": [
        "configs/finetune/cifar10-modern.yaml",
        *LABELS,
        "encoder.init=start",
        "optim.ema=0.9",
    ],
    "ddp": [*MASKS, "data.trace=true", *PROBE],
    "fsdp": [*MASKS, "run.parallel=fsdp"],
}
MORE: dict[str, list[str]] = {  # by --only
    "sequential": [*MASKS, "data.read=sequential"],
    "grey": [*MASKS, "data.channels=1", "data.mean=[0.5]", "data.std=[0.25]"],
    "decoder": [
        *MASKS,
        "encoder.sees_masked=false",
        "decoder.depth=2",
        "target.kind=colour_grid",
        "target.grid=2",
        "encoder.args.reg_tokens=2",
        "run.micro_batch_size=8",
    ],
    "like": [
        "configs/finetune/cifar10-paper.yaml",
        *LABELS,
        "encoder.like=start",
        "head.tuned_blocks=1",
        "head.pooling=both",
    ],
}
LAUNCHED = {"ddp", "fsdp"}  # on two ranks


def command_of(checkout: Path, name: str, workers: int, folder: Path) -> list[str]:
    """Return the command line of a run, to be run in the folder of the data."""
    config, *keys = (RUNS | MORE)[name]
    script = "finetune/run.py" if "configs/finetune" in config else "pretrain/run.py"
    program = [str(checkout / ".venv/bin/python")]
    if name in LAUNCHED:
        program = [str(checkout / ".venv/bin/torchrun"), "--nproc-per-node=2", "--standalone"]
    last = [f"data.workers={workers}", f"run.dir={folder}"]
    return [*program, str(checkout / script), str(checkout / config), *COMMON, *keys, *last]


def begin(
    checkout: Path, data: Path, name: str, workers: int, folder: Path
) -> subprocess.Popen[bytes]:
    """Start a run; what it prints goes to `FOLDER.log`."""
    names = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            command_of(checkout, name, workers, folder),
            cwd=data,
            env=os.environ | names,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_whole(checkout: Path, data: Path, name: str, workers: int, folder: Path) -> None:
    """Run to the end."""
    status = begin(checkout, data, name, workers, folder).wait(timeout=600)
    assert status == 0, f"{folder.with_suffix('.log')} ended with status {status}"


def run_killed(checkout: Path, data: Path, name: str, workers: int, folder: Path) -> None:
    """Run until step 6 is committed, then kill all of its processes."""
    steps: list[str] = []
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)
        process = begin(checkout, data, name, workers, folder)
        while process.poll() is None and not (folder / "checkpoints/step-00000006").exists():
            time.sleep(0.002)
        for pid in descendants(process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        steps = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
        if "step-00000006" in steps and "step-00000012" not in steps:
            return
    raise AssertionError(f"{folder} was finished before it could be killed: {steps}")


def descendants(pid: int) -> list[int]:
    """Return a process and all below it, the process first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    result = [pid]
    for one in result:
        result.extend(parents.get(one, []))
    return result


# ---------------------------------------------------------------- comparing


def digest(folder: Path) -> dict[str, str]:
    """Return what must be equal, by file of the run and by record of its metrics."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            result[name] = f"-> {path.readlink()}"
        elif path.name == "metrics.jsonl":
            for number, line in enumerate(path.read_text().splitlines()):
                record = {k: v for k, v in json.loads(line).items() if not k.startswith("speed/")}
                result[f"{name}:{number}"] = json.dumps(record)
        elif path.name == "config.yaml":
            lines = path.read_text().splitlines()
            result[name] = "\n".join(line for line in lines if not line.startswith("  dir: "))
        elif path.is_file() and path.name != ".lock":  # which process it was
            result[name] = sha256(path.read_bytes()).hexdigest()
    return result


def printed(folder: Path) -> list[str]:
    """Return the lines that a run printed, without rates and paths."""
    text = folder.with_suffix(".log").read_text()
    text = text.replace(str(folder), "RUN")
    text = re.sub(r"images/s [\d.]+", "images/s", text)
    return [
        line for line in text.splitlines() if "[W" not in line and "torch/distributed" not in line
    ]


def compare(one: Path, other: Path) -> int:
    """Print what differs of each run that both folders hold; return the number of runs that do."""
    names = sorted(p.name for p in one.iterdir() if p.is_dir() and (other / p.name).is_dir())
    num_different = 0
    for name in names:
        old, new = digest(one / name), digest(other / name)
        wrong = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        lines = "equal" if printed(one / name) == printed(other / name) else "differ"
        records = sum("metrics.jsonl:" in key for key in old)
        verdict = f"DIFFERS in {', '.join(wrong[:4])}" if wrong else "equal"
        print(
            f"{name:16} {len(old) - records} files, {records} records: {verdict}; "
            f"printed lines {lines}"
        )
        num_different += bool(wrong)
    print(f"{len(names)} runs compared, {num_different} differ")
    return num_different


def prepare(data: Path, source: Path, checkout: Path) -> None:
    """Make small shards, and the run that fine-tuning starts from."""
    folder = data / "shards/cifar10"
    folder.mkdir(parents=True)
    for name, number in SHARDS:
        with (
            tarfile.open(source / f"{name}.tar") as old,
            tarfile.open(folder / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as new,
        ):
            for member in old.getmembers()[: 2 * number]:
                new.addfile(member, old.extractfile(member))
    shutil.copyfile(source / "classes.txt", folder / "classes.txt")
    make = "from data.demo import FOLDER, make_demo_shards; make_demo_shards(FOLDER)"
    names = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(
        [str(checkout / ".venv/bin/python"), "-c", make], cwd=data, env=names, check=True
    )
    run_whole(checkout, data, "mask-tokens", 0, data / "start")


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["prepare", "whole", "killed", "finish", "compare"])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--begun", type=Path)
    parser.add_argument("--only", default=",".join(RUNS))
    parser.add_argument("--workers", default="0,2")
    given = parser.parse_args()
    folders = [folder.resolve() for folder in given.folders]
    if given.action == "compare":
        return compare(*folders)
    checkout = given.checkout.resolve()
    if given.action == "prepare":
        prepare(folders[0], given.source, checkout)
        return 0
    data, out = folders
    for name in given.only.split(","):
        for workers in map(int, given.workers.split(",")):
            folder = out / f"{name}-w{workers}"
            if given.action == "finish":
                shutil.copytree(given.begun / folder.name, folder, symlinks=True)
            act = run_killed if given.action == "killed" else run_whole
            act(checkout, data, name, workers, folder)
            print(f"{given.action} {folder.name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
