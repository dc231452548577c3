"""The tools around a run, at two commits: do they write and print the same?

    python tests/move/tools.py run DATA OUT --checkout CHECKOUT     (DATA: that of runs.py)
    python tests/move/tools.py compare OUT OUT

Each command runs in a copy of DATA. Compared are the files that are there afterwards, by sha256,
and each command's status and printed lines: without times, rates, free memory, the order in which
safetensors writes metadata, and the notes of an ONNX graph's nodes.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

LABELS = "data.train=shards/cifar10/train-*.tar data.val=shards/cifar10/test-*.tar data.workers=0"
COMMANDS = (
    "scripts/make_shards.py photos made --val-ratio 0.25",
    "scripts/index_shards.py made/train-*.tar --check-images",
    "scripts/describe.py CHECKOUT/configs/pretrain/vit_base.yaml",
    "scripts/describe.py CHECKOUT/configs/pretrain/cifar10.yaml --batch 8",
    "scripts/verify_run.py start --json verdict.json",
    f"finetune/fewshot.py encoder.init=start {LABELS} fewshot.dir=few fewshot.layers=all "
    "fewshot.poolings=[average,class] fewshot.shots=[1,5] fewshot.threads=1",
    f"finetune/probe.py encoder.like=start {LABELS} probe.dir=linear probe.threads=1",
    "scripts/export.py start as-timm",
    "scripts/export.py tuned as-transformers --to transformers",
    "scripts/export.py start as-onnx --to onnx",
    "scripts/predict.py tuned photos --json",
    "scripts/predict.py tuned photos --top 3",
    "scripts/report.py start --output report.html --figures figures",
    "scripts/report.py tuned --output tuned.html",
    # mistakes
    "pretrain/run.py run.stepz=3",
    "pretrain/run.py data.shards=missing/*.tar run.dir=none",
    "finetune/run.py encoder.init=nothing data.train=made run.dir=none",
    "scripts/export.py start as-timm",
    "scripts/predict.py start photos",
    "scripts/verify_run.py made",
    "scripts/report.py made",
)


def run(data: Path, out: Path, checkout: Path) -> None:
    """Run all commands in a copy of the data."""
    shutil.copytree(data, out, symlinks=True)
    with tarfile.open(out / "shards/cifar10/test-000000.tar") as tar:
        for number, member in enumerate(m for m in tar if m.name.endswith(".jpg")):
            path = out / "photos" / f"class{number % 4}" / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(getattr(tar.extractfile(member), "read", bytes)())
            if number == 39:
                break
    names = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    for number, command in enumerate(COMMANDS):
        script, *arguments = command.replace("CHECKOUT", str(checkout)).split()
        answer = subprocess.run(
            [str(checkout / ".venv/bin/python"), str(checkout / script), *arguments],
            cwd=out,
            env=names,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        text = f"{command}\nstatus {answer.returncode}\n{answer.stdout}{answer.stderr}"
        text = text.replace(str(checkout), "CHECKOUT").replace(str(out), "OUT")
        (out / f"{number:02d}.printed").write_text(text)
        print(f"{answer.returncode} {command}", flush=True)


def normal(path: Path, folder: Path) -> bytes:
    """Return a file's bytes without the folder's name, times, free memory and names of modules."""
    data = path.read_bytes().replace(str(folder).encode(), b"OUT")
    if path.suffix == ".index":  # its metadata come in another order each time
        size = 8 + int.from_bytes(data[:8], "little")
        return json.dumps(json.loads(data[8:size]), sort_keys=True).encode() + data[size:]
    data = re.sub(rb"[\d.]+ ?(images/s|seconds|s\b|GiB are free)", b"RATE", data)
    data = re.sub(rb'"(mtime_ns|seconds)": [\d.]+', b"TIME", data)
    if path.suffix == ".onnx":  # each node says which module it comes from
        data = normal_onnx(path)
    return data


def normal_onnx(path: Path) -> bytes:
    """Return a graph without its notes."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    return model.SerializeToString()


def digest(folder: Path) -> dict[str, str]:
    """Return each file's hash."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink())
    return {str(p.relative_to(folder)): sha256(normal(p, folder)).hexdigest() for p in files}


def compare(one: Path, other: Path) -> int:
    """Print which files differ; return how many."""
    old, new = digest(one), digest(other)
    wrong = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    print(f"{len(COMMANDS)} commands, {len(old)} files, {len(old.keys() - wrong)} of them equal")
    for name in wrong:
        print(f"differs: {name}{'' if name in old and name in new else ' (on one side only)'}")
        if name.endswith(".printed"):
            before, after = ((f / name).read_text().splitlines() for f in (one, other))
            print(f"    {before[0]}")
            print("\n".join(f"    - {line}" for line in before if line not in after))
            print("\n".join(f"    + {line}" for line in after if line not in before))
    return len(wrong)


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["run", "compare"])
    parser.add_argument("folders", nargs=2, type=Path)
    parser.add_argument("--checkout", type=Path)
    given = parser.parse_args()
    one, other = (folder.resolve() for folder in given.folders)
    if given.action == "compare":
        return compare(one, other)
    run(one, other, given.checkout.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
