"""configs/accelerate and scripts/slurm.sh: how processes are started on one machine and on many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
SLURM = ROOT / "scripts" / "slurm.sh"
# in one write, so that two tasks' lines stay apart
SAY = "import json, os, sys; os.write(1, json.dumps(dict(os.environ)).encode() + b'\\n')"
LAUNCHER = {
    "single": {"distributed_type": "NO", "num_processes": 1, "num_machines": 1},
    "ddp": {"distributed_type": "MULTI_GPU", "num_machines": 1},
    "fsdp": {"distributed_type": "MULTI_GPU", "num_machines": 1},
    "multi_node": {"distributed_type": "MULTI_GPU", "num_machines": 2},
}


# ---------------------------------------------------------------- accelerate


def test_there_is_a_file_for_each_way() -> None:
    assert {path.stem for path in FILES} == set(LAUNCHER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_takes_the_file_and_changes_nothing_of_the_run(path: Path) -> None:
    config = load_config_from_file(str(path)).to_dict()
    assert LAUNCHER[path.stem].items() <= config.items()
    assert config["mixed_precision"] == "no"
    assert not config.get("fsdp_config")
    assert not config.get("deepspeed_config")
    assert "gradient_accumulation_steps" not in path.read_text()
    arguments = ["--config_file", str(path), "pretrain/run.py"]
    parsed = _validate_launch_command(launch_command_parser().parse_args(arguments))[0]
    assert parsed.multi_gpu == (path.stem != "single")
    assert not parsed.use_fsdp
    assert not parsed.use_deepspeed
    assert parsed.num_machines == LAUNCHER[path.stem]["num_machines"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_gives_the_command_that_uses_the_file(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = f"# command: accelerate launch --config_file {path.relative_to(ROOT)}"
    assert command in "\n".join(header)
    assert any(line.startswith("# source:") for line in header)
    assert any("not yet run on" in line for line in header)


def test_fsdp_says_what_to_add() -> None:
    text = (ROOT / "configs" / "accelerate" / "fsdp.yaml").read_text()
    assert "run.parallel=fsdp" in text


def launch(tmp_path: Path, path: Path, *arguments: str) -> subprocess.Popen[str]:
    script = tmp_path / "say.py"
    script.write_text(SAY)
    launcher = str(Path(sys.executable).with_name("accelerate"))
    command = [launcher, "launch", "--config_file", str(path), *arguments, str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def said(process: subprocess.Popen[str]) -> list[dict[str, str]]:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_two_launchers_of_multi_node_make_one_world(tmp_path: Path) -> None:
    path = ROOT / "configs" / "accelerate" / "multi_node.yaml"
    world = ["--num_processes=2", "--main_process_ip=127.0.0.1", "--main_process_port=29617"]
    launchers = [launch(tmp_path, path, *world, f"--machine_rank={n}") for n in range(2)]
    environments = [environment for process in launchers for environment in said(process)]
    assert sorted(environment["RANK"] for environment in environments) == ["0", "1"]
    assert {environment["WORLD_SIZE"] for environment in environments} == {"2"}
    assert {environment["ACCELERATE_MIXED_PRECISION"] for environment in environments} == {"no"}


# ---------------------------------------------------------------- Slurm

# Stand-ins, for there is no Slurm here. This srun starts its tasks side by side and gives them what
# Slurm does; like the real one it kills the rest when a task fails, and ends with the highest
# status.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
command = sys.argv[1:]
assert command.pop(0) == "--kill-on-bad-exit=1", command
while command[0].startswith("--"):
    command.pop(0)
tasks = []
for rank in range(2):
    environment = os.environ | {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 1)}}
    environment |= {{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}}
    tasks.append(subprocess.Popen(command, env=environment))
if "SEND" in os.environ:
    while not all(os.path.exists(f"ready-{{rank}}") for rank in range(2)):
        pass
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
waiting, status = list(tasks), 0
while waiting:
    for task in list(waiting):
        if task.poll() is not None:
            waiting.remove(task)
            code = task.returncode if task.returncode >= 0 else 128 - task.returncode
            status = max(status, code)
            if code:
                [other.kill() for other in waiting]
sys.exit(status)
"""
SCONTROL = """#!/bin/bash
[ "$1 $2" = "show hostnames" ] && printf 'node-1\\nnode-2\\n' && exit
echo "$@" >> scontrol.log
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """Make the stand-ins, in a folder that is searched for programs first."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(folder: Path, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a job of 2 tasks that run a Python program."""
    (folder / "program.py").write_text(program)
    own = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "20007",
        "SLURM_JOB_NODELIST": "node-[1-2]",
    }
    return subprocess.run(
        ["bash", str(SLURM), "program.py", "a key=two words"],
        cwd=folder,
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def requests(folder: Path) -> list[str]:
    log = folder / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def test_each_task_is_told_its_place_and_given_the_arguments(slurm: Path) -> None:
    done = submit(slurm, f"{SAY}; assert sys.argv[1:] == ['a key=two words']")
    assert done.returncode == 0, done.stderr
    tasks = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted((task["RANK"], task["LOCAL_RANK"]) for task in tasks) == [("0", "0"), ("1", "0")]
    for task in tasks:
        assert task["WORLD_SIZE"] == "2"
        assert task["LOCAL_WORLD_SIZE"] == "1"
        assert task["MASTER_ADDR"] == "node-1"
        assert task["MASTER_PORT"] == "20007"
    assert requests(slurm) == []


def test_a_run_that_asks_for_it_is_requeued_though_its_tasks_leave_one_by_one(slurm: Path) -> None:
    late = "import os, sys, time; time.sleep(0.5 * int(os.environ['RANK'])); sys.exit(75)"
    done = submit(slurm, late)
    assert done.returncode == 0, done.stderr
    assert requests(slurm) == ["requeue 20007"]
    assert list(slurm.glob("*.statuses")) == []


@pytest.mark.parametrize("status", [1, 2, 3])
def test_another_status_ends_the_job_with_it(slurm: Path, status: int) -> None:
    done = submit(slurm, f"import sys; sys.exit({status})")
    assert done.returncode == status
    assert requests(slurm) == []


def test_one_failing_task_ends_the_job_though_others_ask_to_be_requeued(slurm: Path) -> None:
    mixed = "import os, sys, time; r = int(os.environ['RANK']); time.sleep(0.5 * r)\n"
    done = submit(slurm, mixed + "sys.exit([75, 1][r])")
    assert done.returncode == 1
    assert requests(slurm) == []


def test_a_finished_run_is_not_requeued_for_an_earlier_start_of_the_job(slurm: Path) -> None:
    (slurm / "slurm-20007.statuses").write_text("75\n")
    assert submit(slurm, "").returncode == 0
    assert requests(slurm) == []


def test_slurms_warning_reaches_the_program(slurm: Path) -> None:
    program = """
import os, signal, sys, time
warned = []
signal.signal(signal.SIGUSR1, lambda *_: warned.append(1))
open(f"ready-{os.environ['RANK']}", "w").close()
while not warned:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(75)
"""
    done = submit(slurm, program, SEND="yes")
    assert done.returncode == 0, done.stderr
    assert requests(slurm) == ["requeue 20007"]


def test_the_script_asks_slurm_for_what_a_requeue_needs() -> None:
    asked = [line for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    needed = {"--signal=SIGUSR1@300", "--requeue", "--open-mode=append"}
    assert needed <= {line.removeprefix("#SBATCH ") for line in asked}
    assert subprocess.run(["bash", "-n", str(SLURM)], check=False).returncode == 0
