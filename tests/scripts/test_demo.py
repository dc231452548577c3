"""The demo in short: a run without an argument makes its shards, and its configurations fit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import data.demo.scenes
from scripts._demo import steps
from scripts._demo.scenes import SCENES
from scripts._demo.steps import show, summarise
from scripts._demo.tiles import TILES
from tests.launching import Family, run_forked

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_makes_its_shards_pretrains_and_is_measured(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "configs/pretrain/demo.yaml").read_text())
    config["optim"] |= {"steps": 2, "warmup_steps": 1}
    config["run"] |= {"eval_every": 0, "threads": 1}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(config))
    code = "from pretrain import run; run.DEMO = 'short.yaml'; run.main([])"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    finished = "finished: 2 steps; the encoder is in runs/demo/encoder\nnext: "
    assert done.stdout.startswith(finished)
    assert len(list((tmp_path / "shards/demo").glob("train-*.tar"))) == 4
    script, config = f"{ROOT}/finetune/fewshot.py", f"{ROOT}/configs/finetune/demo-fewshot.yaml"
    command = [sys.executable, script, config, "encoder.init=runs/demo", "fewshot.num_seeds=1"]
    measured = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert measured.returncode == 0, measured.stderr
    table = measured.stdout
    assert table.startswith("runs/demo: 800 images\n")
    header, _, row = (line.strip("| ").split("|") for line in table.splitlines()[2:])
    assert [name.strip() for name in header[2:]] == ["1shot", "5shot", "10shot", "25shot"]
    assert [cell.strip() for cell in row[:2]] == ["4", "average"]


def test_ctrl_c_ends_the_demo_in_a_line_and_leaves_nothing_running(tmp_path: Path) -> None:
    for name in ("pretrain", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        demo = subprocess.Popen(
            [sys.executable, f"{ROOT}/scripts/demo.py"],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    family, log = Family(demo.pid), tmp_path / "runs/demo/metrics.jsonl"
    for _ in range(1200):
        if log.exists() or demo.poll() is not None:  # a step is being made, or will not be
            break
        time.sleep(0.1)
    family.look()
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(60) == 130, (tmp_path / "err").read_text()
    assert family.alive() == []
    lines = (tmp_path / "err").read_text().splitlines()
    assert lines[-1] == "stopped: SIGINT came; the same command goes on where this one was"
    assert not any("Traceback" in line for line in lines)
    assert "is committed, and the same command resumes from it" in lines[-2]


def test_a_configuration_alone_makes_no_shards(tmp_path: Path) -> None:
    command = [sys.executable, f"{ROOT}/pretrain/run.py", f"{ROOT}/configs/pretrain/demo.yaml"]
    done = run_forked(command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.")
    assert "shards/demo/" in done.stderr
    assert not (tmp_path / "shards").exists()


def test_what_is_no_option_does_not_start_the_demo(tmp_path: Path) -> None:
    done = run_forked([sys.executable, f"{ROOT}/scripts/demo.py", "optim.steps=2"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unrecognized arguments: optim.steps=2; see --help\n"


def test_the_last_lines_say_what_was_gained_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {
        name: {f"accuracy/{shots}shot": accuracy + shots / 100 for shots in (1, 5, 10, 25)}
        for name, accuracy in (("fewshot", 0.5), ("fewshot-untrained", 0.4))
    } | {"finetune": {"accuracy": 0.8}, "scratch": {"accuracy": 0.7}}
    for name, result in results.items():
        (tmp_path / "runs/demo" / name).mkdir(parents=True)
        (tmp_path / "runs/demo" / name / "result.json").write_text(json.dumps(result))
    figures = {"val/accuracy_neighbour": 0.19, "val/accuracy_mask": 0.2}
    (tmp_path / "runs/demo/metrics.jsonl").write_text(f"{{}}\n{json.dumps(figures)}\n")
    monkeypatch.chdir(tmp_path)
    summarise(TILES, 177)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("== Done in 3.0 minutes. ")
    table = {line[2:42].rstrip(): line[42:].split() for line in lines if line.endswith("%")}
    assert table == {
        "frozen, 1 labelled tile of each": ["41.0%", "51.0%"],
        "frozen, 5 labelled tiles of each": ["45.0%", "55.0%"],
        "frozen, 10 labelled tiles of each": ["50.0%", "60.0%"],
        "frozen, 25 labelled tiles of each": ["65.0%", "75.0%"],
        "fine-tuned, all 4,000 labelled tiles": ["70.0%", "80.0%"],
        "guessing": ["12.5%", "12.5%"],
        "copying the nearest patch that is seen": ["19.0%"],
        "the pretrained model": ["20.0%"],
    }
    start = lines.index("Next, with a folder of your own images:")
    assert [line.split()[:2] for line in lines[start + 1 :]][-2:] == [
        ["mpp", "recommend"],
        ["mpp", "pretrain"],
    ]


# ---------------------------------------------------------------- images with captions

TRAINED = ["optim.steps=2", "optim.warmup_steps=1", "optim.batch_size=16", "run.threads=1"]


def run_short(command: list[str]) -> int:
    """Run a step's command, cut to two optimizer steps if it trains."""
    trains = "configs" in command[2]
    cut = [*TRAINED, "data.workers=0"] if trains else []
    return run_forked([sys.executable, *command[1:], *cut], cwd=Path.cwd()).returncode


def test_the_demo_with_captions_does_its_steps_and_says_what_was_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pretrain", "finetune", "scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.demo.scenes, "NUM_TRAIN", 80)
    monkeypatch.setattr(data.demo.scenes, "NUM_VAL", 20)
    monkeypatch.setattr(steps, "run_command", run_short)
    show(replace(SCENES, steps=SCENES.steps[:-1]))  # the report has tests of its own
    steps_taken, done, said = capsys.readouterr().out.partition("\n== Done")
    assert steps_taken.startswith("The demo shows what a transformer learns from images with ")
    lines = (done + said).splitlines()
    table = [(line[2:46].rstrip(), line[46:].split()) for line in lines if line.endswith("%")]
    assert [name for name, _ in table] == [
        "the more frequent answer, always",
        "the pretrained model",
        "the most frequent word, always",
        "the pretrained model, without the picture",
        "the pretrained model",
        "guessing",
        "the pretrained model",
        "guessing",
        "the same model from scratch",
        "the pretrained model",
    ]
    assert [len(figures) for _, figures in table] == [1, 1, 1, 1, 1, 2, 2, 1, 1, 1]
    assert SCENES.steps[-1].command == "python scripts/report.py runs/demo-vilt"
    assert all((tmp_path / line.split()[0]).exists() for line in SCENES.places[1:])
