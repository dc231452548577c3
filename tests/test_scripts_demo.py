"""The demo in short: its shards are made where they are missing, and its configurations fit."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_makes_its_shards_pretrains_and_is_measured(tmp_path: Path) -> None:
    short = ["optim.steps=2", "optim.warmup_steps=1", "run.eval_every=0", "run.threads=1"]
    config = f"{ROOT}/configs/pretrain/demo.yaml"
    printed = run(tmp_path, f"{ROOT}/pretrain/run.py", config, *short)
    assert printed == "finished: 2 steps; the encoder is in runs/demo/encoder\n"
    assert len(list((tmp_path / "shards/demo").glob("train-*.tar"))) == 4
    measure = [f"{ROOT}/finetune/fewshot.py", f"{ROOT}/configs/finetune/demo-fewshot.yaml"]
    table = run(tmp_path, *measure, "encoder.init=runs/demo", "fewshot.num_seeds=1")
    assert table.startswith("runs/demo: 800 images\n")
    header, _, row = (line.strip("| ").split("|") for line in table.splitlines()[2:])
    assert [name.strip() for name in header[2:]] == ["1shot", "5shot", "10shot", "25shot"]
    assert [cell.strip() for cell in row[:2]] == ["4", "average"]
