"""The demo in short: its shards are made where they are missing, and its configurations fit."""

import os
import subprocess
import sys
from pathlib import Path

from tests.launching import run_forked

ROOT = Path(__file__).resolve().parents[1]


def test_the_demo_makes_its_shards_pretrains_and_is_measured(tmp_path: Path) -> None:
    short = ["optim.steps=2", "optim.warmup_steps=1", "run.eval_every=0", "run.threads=1"]
    config = f"{ROOT}/configs/pretrain/demo.yaml"
    command = [sys.executable, f"{ROOT}/pretrain/run.py", config, *short]
    done = run_forked(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "finished: 2 steps; the encoder is in runs/demo/encoder\n"
    assert len(list((tmp_path / "shards/demo").glob("train-*.tar"))) == 4
    script, config = f"{ROOT}/finetune/fewshot.py", f"{ROOT}/configs/finetune/demo-fewshot.yaml"
    command = [sys.executable, script, config, "encoder.init=runs/demo", "fewshot.num_seeds=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    measured = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert measured.returncode == 0, measured.stderr
    table = measured.stdout
    assert table.startswith("runs/demo: 800 images\n")
    header, _, row = (line.strip("| ").split("|") for line in table.splitlines()[2:])
    assert [name.strip() for name in header[2:]] == ["1shot", "5shot", "10shot", "25shot"]
    assert [cell.strip() for cell in row[:2]] == ["4", "average"]
