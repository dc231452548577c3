"""Every command of README and of the configurations' headers runs as it is written.

Names lead to small data, and keys are added behind that make a run short; precision, launcher and
all other keys are the command's own. Here in this process, with what `accelerate launch` puts into
the environment of a machine without a GPU; marked `faults`, through the launcher itself.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from data.shards import ImageFile, write_shard
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from tests.conftest import make_png

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
README = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
FOLDERS = ("pretrain", "finetune", "encoder", "objective", "accelerate")  # ablate: its own tests
SHAPE = ["encoder.embed_dim=32", "encoder.depth=2", "encoder.num_heads=2"]
SHORT = ["optim.steps=1", "optim.warmup_steps=0", "optim.batch_size=4", "data.workers=1"]
RUNS = {"vit_base": (224, 16), "demo": (48, 8), "cifar10": (32, 4), "cifar10-mask-tokens": (32, 4)}
# what `accelerate launch` sets where it is told nothing and finds no GPU
LAUNCHED = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
}
SOME = ("vit_base.yaml", "words.yaml", "ti.yaml", "supervised.yaml", "modern.yaml", "single.yaml")

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="shows a machine without a GPU; tests of the GPU do the rest"
)


def commands_of(text: str) -> list[str]:
    """Join continued lines, and leave out what is no command of ours."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"python |accelerate |torchrun ", line)]


def header_command(path: Path) -> str:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(line.removeprefix("# command: ").removeprefix("#") for line in header)
    [command] = commands_of(text)
    return " ".join(command.split())


FILES = [path for folder in FOLDERS for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out a checkout whose data are small: the names that commands speak of exist."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "data", "finetune", "pretrain", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    names = ["mine/train-000000", "mine/val-000000", "demo/val-000000", "cifar10/test-000000"]
    names += [f"demo/train-{number:06d}" for number in range(4)] + ["cifar10/test-000001"]
    names += [f"cifar10/train-{number:06d}" for number in range(10)]
    paths = [f"shards/{name}.tar" for name in names]
    for place, path in enumerate([*paths, "labelled/train-0.tar", "labelled/val-0.tar"]):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        images = range(12 * place, 12 * place + 12)
        samples = (ImageFile(f"{n:04d}", "png", make_png(n), n % 3) for n in images)
        write_shard(folder / path, samples)
    (folder / "photos").mkdir()
    for number in range(1000, 1040):
        (folder / f"photos/{number}.png").write_bytes(make_png(number))
    return folder


@pytest.fixture
def checkout(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy it, and go there."""
    shutil.copytree(template, tmp_path / "checkout", symlinks=True)
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # no configuration of accelerate
    return tmp_path / "checkout"


def prepare(command: str, folder: Path) -> list[str]:
    """Make the runs that a command starts from; return what makes it small."""
    found = re.search(r"encoder\.(?:init|like)=runs/(\S+)", command)
    if found and found[1] in RUNS:
        size, patch = RUNS[found[1]]
        config = EncoderConfig("vit_base_patch16_224", "none", patch, 32, 2, 2)
        save_encoder(make_encoder(config, (size, size)), folder / f"runs/{found[1]}/encoder")
    if "fewshot.py" in command:
        return ["fewshot.shots=[1]", "fewshot.num_seeds=1", "data.workers=1"]
    if "run.py" not in command:
        return []
    micro = ["run.micro_batch_size=2"] if "micro_batch_size" in command else []
    return [*(SHAPE if found is None else []), *SHORT, *micro]


def run_here(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command's entry point in this process, as its launcher would."""
    arguments = [*shlex.split(command), *prepare(command, folder)]
    if arguments[0] == "accelerate":
        for name, value in LAUNCHED.items():
            monkeypatch.setenv(name, value)
    place = next(n for n, argument in enumerate(arguments) if argument.endswith(".py"))
    module = importlib.import_module(arguments[place].removesuffix(".py").replace("/", "."))
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
    module.main(arguments[place + 1 :])


def run_launched(command: str, folder: Path) -> str:
    """Run a command with its launcher; return what it said."""
    program, *arguments = [*shlex.split(command), *prepare(command, folder)]
    names = ("ACCELERATE_", "OMP_", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    done = subprocess.run(
        [str(BIN / program), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def needs_other_machines(path: Path) -> bool:
    """tests/test_configs.py starts what speaks of two machines on one."""
    return path.stem == "multi_node"


# ---------------------------------------------------------------- as written, in this process


def test_readmes_way_from_a_folder_of_images_to_a_backbone(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("shards/mine")
    [commands] = [found for block in README if len(found := commands_of(block)) > 1]
    assert len(commands) == 6
    for command in commands:
        monkeypatch.undo()
        monkeypatch.chdir(checkout)
        run_here(command, checkout, monkeypatch)
    assert (checkout / "mine-encoder/model.safetensors").exists()
    assert "photos/1000.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name in SOME or path.parent.name == "pretrain"], ids=str
)
def test_a_headers_command_runs_in_its_precision(
    path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = header_command(path)
    assert f"configs/{path.parent.name}/{path.name}" in command
    run_here(command, checkout, monkeypatch)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_many_processes_are_started_quietly_and_one_by_python(path: Path) -> None:
    words = header_command(path).split()
    is_launched = words[:2] == ["accelerate", "launch"]
    assert is_launched == ("-q" in words)
    assert is_launched or words[0] == "python"


def test_a_launchers_environment_is_what_is_put_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bf16 on a CPU through `accelerate launch` itself."""
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pretrain.training.run_config import RunConfig; from pretrain.training.launch import start
print(" ".join(f"{{name}}={{os.environ.get(name)}}" for name in {list(LAUNCHED)}))
print(start(RunConfig(precision="bf16")).device)
"""
    (tmp_path / "say.py").write_text(script)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    said = run_launched("accelerate launch -q say.py", tmp_path)
    assert " ".join(f"{name}={value}" for name, value in LAUNCHED.items()) in said
    assert said.splitlines()[-1] == "cpu"


# ---------------------------------------------------------------- through the launcher


@pytest.mark.faults
def test_all_of_readme_runs_through_its_launchers(checkout: Path) -> None:
    shutil.rmtree("shards/mine")
    for number in range(1000):
        sample = ImageFile(f"{number:04d}", "png", make_png(number, (4, 4)), 0)
        write_shard(checkout / f"shards/train-{number:06d}.tar", [sample])
    for command in (command for block in README for command in commands_of(block)):
        run_launched(command, checkout)


@pytest.mark.faults
@pytest.mark.parametrize(
    "path", [path for path in FILES if not needs_other_machines(path)], ids=lambda path: path.stem
)
def test_a_headers_command_runs_through_its_launcher(path: Path, checkout: Path) -> None:
    command = header_command(path)
    own = ["data.workers=0"] if "num_processes" in command else []
    said = run_launched(" ".join([command, *own]), checkout)
    assert "run.py" not in command or "start: " in said
