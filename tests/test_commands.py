"""Every command of README, the documentation and the configurations' headers runs as it is written.

Names lead to small data, and keys are added behind that make a run short; precision, launcher and
all other keys are the command's own. Here in this process, with what `accelerate launch` puts into
the environment of a machine without a GPU; marked `faults`, through the launcher itself.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from data.commands import COMMANDS
from data.shards import ImageFile, write_shard
from pretrain import api
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from tests.conftest import make_png
from tests.segmented import write_segmented
from tests.servers import flaky_http

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
HOW_TO = sorted((ROOT / "docs/how-to").glob("*.md"))
ELSEWHERE = ("docker", "notebook")  # needs a container; has Python, which a test below runs
PAGES = [ROOT / "docs/index.md", *(path for path in HOW_TO if path.stem not in ELSEWHERE)]
FOLDERS = ("pretrain", "finetune", "encoder", "objective", "accelerate")  # ablate: its own tests
SHAPE = ["encoder.embed_dim=32", "encoder.depth=2", "encoder.num_heads=2"]
SHORT = ["optim.steps=1", "optim.warmup_steps=0", "optim.batch_size=4"]
RUNS = {"vit_base": (224, 16), "demo": (48, 8), "cifar10": (32, 4), "cifar10-mask-tokens": (32, 4)}
SMALL = {  # what makes a script small
    "ablate.py": ["--table"],  # its own tests run its rows
    "describe.py": SHAPE,
    "attentive": [
        *("probe.neighbours=5", "probe.penalties=[0.1]", "probe.steps=1"),
        *("probe.rates=[0.01]", "probe.decays=[0]"),
    ],
    "finetune/probe.py": ["probe.neighbours=5", "probe.penalties=[0.1]"],
    "finetune/dense.py": ["data.image_size=[16,16]", "data.num_classes=3", "data.ignored=9"],
}
OWN = {  # of a recipe that starts from weights of timm's
    "pretrain/vilt.yaml": ["encoder.init=none", "encoder.name=vit_base_patch32_384"]
}
# what `accelerate launch` sets where it is told nothing and finds no GPU
LAUNCHED = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
}
HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None  # of the extra parquet
SOME = ("vit_base.yaml", "words.yaml", "ti.yaml", "supervised.yaml", "modern.yaml", "single.yaml")

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="shows a machine without a GPU; tests of the GPU do the rest"
)


def commands_of(text: str) -> list[str]:
    """Join continued lines, and leave out comments and what is no command of ours."""
    lines = [line.partition("  # ")[0] for line in text.replace("\\\n", " ").splitlines()]
    lines = map(spelt_out, lines)
    return [line for line in lines if re.match(r"python |accelerate |torchrun ", line)]


def spelt_out(line: str) -> str:
    """Return the command that `mpp NAME` stands for."""
    words = line.split(maxsplit=2)
    if words[:1] != ["mpp"] or len(words) < 3 or words[1] not in COMMANDS:
        return line
    return f"python {COMMANDS[words[1]]} {words[2]}"


def test_a_short_name_stands_for_its_entry_point() -> None:
    page = "mpp probe a=b\\\n c=d\nmpp --version\npython x.py y\n"
    assert commands_of(page) == ["python finetune/probe.py a=b  c=d", "python x.py y"]


def page_commands(path: Path) -> list[str]:
    """Return the commands of a Markdown file, in their order."""
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)
    return [command for block in blocks for command in commands_of(block)]


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
    names += ["labelled/train-000000", "labelled/val-000000"]
    names += [f"theirs/train-{number:06d}" for number in range(4)]
    names += [f"demo/train-{number:06d}" for number in range(4)] + ["cifar10/test-000001"]
    names += [f"scenes/train-{number:06d}" for number in range(4)] + ["scenes/val-000000"]
    names += [f"cifar10/train-{number:06d}" for number in range(10)]
    paths = [f"shards/{name}.tar" for name in names]
    for place, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        images = range(12 * place, 12 * place + 12)
        samples = (
            ImageFile(f"{n:04d}", "png", make_png(n), n % 3, (f"picture number {n}",))
            for n in images
        )
        write_shard(folder / path, samples)
    for number in range(1000, 1040):
        write_file(folder / f"photos/{number}.png", make_png(number))
        kind = ("cat", "dog")[number % 2]
        for name in ("by-class", "by-class-test", "labelled/train", "labelled/val"):
            write_file(folder / f"{name}/{kind}/{number}.png", make_png(number))
        write_file(folder / f"captioned/{number}.png", make_png(number))
        write_file(folder / f"captioned/{number}.txt", captions_of(number))
        array = io.BytesIO()
        np.save(array, np.full((20, 24, 4), number % 256, np.uint8))
        write_file(folder / f"scans/{number}.npy", array.getvalue())
    for name, numbers in (("train-000000", range(24)), ("val-000000", range(24, 32))):
        pairs = (
            ImageFile(f"{n:04d}", "png", make_png(n), n % 2, (f"a scene of number {n}",))
            for n in numbers
        )
        (folder / "shards/pairs").mkdir(exist_ok=True)
        write_shard(folder / f"shards/pairs/{name}.tar", pairs)
    for name, numbers in (("train-000000", range(12)), ("val-000000", range(12, 15))):
        write_segmented(folder / f"shards/masks/{name}.tar", numbers)
    keep_in_other_ways(folder)
    return folder


def captions_of(number: int) -> bytes:
    colour = ("red", "green", "blue", "black")[number % 4]
    return f"A {colour} square.\nThe square is {colour}, and number {number}.\n".encode()


def keep_in_other_ways(folder: Path) -> None:
    """Keep the images as archives, a table and a dataset."""
    shutil.make_archive(str(folder / "photos"), "zip", folder, "photos")
    shutil.make_archive(str(folder / "flowers"), "gztar", folder, "by-class")
    images = sorted((folder / "by-class").rglob("*.png"), key=lambda path: path.name)
    rows = [f"{path.relative_to(folder)},{path.parent.name}\n" for path in images]
    write_file(folder / "list.csv", "".join(["path,label\n", *rows]).encode())
    rows = [f"{path.relative_to(folder)},a {path.parent.name}\n" for path in 2 * images]
    write_file(folder / "captions.csv", "".join(["path,caption\n", *rows]).encode())
    if HAS_PYARROW:
        pyarrow, parquet = map(importlib.import_module, ("pyarrow", "pyarrow.parquet"))
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in images]
        table = pyarrow.table({"image": cells, "label": [path.parent.name for path in images]})
        for split, part in (("train", table[:32]), ("validation", table[32:]), ("test", table[:2])):
            path = folder / f"dataset/data/{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(part, path)


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def checkout(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy it, and go there."""
    return go_to_copy(template, tmp_path, monkeypatch)


def go_to_copy(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path / "checkout", symlinks=True)
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # no configuration of accelerate
    return tmp_path / "checkout"


@pytest.fixture(scope="session")
def after_readme(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Follow README from images to a backbone; return the checkout and what was printed."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(template, folder / "checkout", symlinks=True)
    commands = page_commands(ROOT / "README.md")
    assert len(commands) == 6
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for command in commands:
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.chdir(folder / "checkout")
                trace = " data.trace=true" if "pretrain/run.py" in command else ""
                run_here(command + trace, folder / "checkout", monkeypatch)
    return folder / "checkout", output.getvalue()


def prepare(command: str, folder: Path, workers: int) -> list[str]:
    """Make the runs that a command starts from; return what makes it small."""
    if "make_shards.py" in command:
        shutil.rmtree(folder / command.split()[3], ignore_errors=True)  # it makes them anew
    found = re.search(r"encoder\.(?:init|like)=runs/(\S+)", command)
    if found and found[1] in RUNS:
        size, patch = RUNS[found[1]]
        config = EncoderConfig("vit_base_patch16_224", "none", patch, 32, 2, 2)
        save_encoder(make_encoder(config, (size, size)), folder / f"runs/{found[1]}/encoder")
    if "fewshot.py" in command:
        return ["fewshot.shots=[1]", "fewshot.num_seeds=1", f"data.workers={workers}"]
    if "recommend.py" in command:
        return ["--hours", "0.02", "--force"]
    for name, keys in SMALL.items():
        if name in command:
            return keys
    if not re.search(r"/run\.py| -m ", command):
        return []
    has_words = re.search(r"words\.yaml|pretrain/demo\.yaml", command) and "e/paper" not in command
    words = ["target.num_words=16", "data.image_size=32"] if has_words else []
    neighbours = ["probe.neighbours=5"] if "probe.val" in command else []
    begun = re.search(r"run\.dir=(\S+)", command)
    if begun and (folder / begun[1]).exists():
        shutil.rmtree(folder / begun[1])  # another page's run
    has_micro = "micro_batch_size" in command or "recipe.yaml" in command
    micro = ["run.micro_batch_size=2"] if has_micro else []
    shape = SHAPE if found is None or "recipe.yaml" in command else []
    # README's run has patches of 2 pixels: at the recipe's 384 pixels, 36,864 an image
    size = ["data.image_size=32"] if "paper.yaml" in command and "=runs/mine" in command else []
    own = [key for name, keys in OWN.items() if name in command for key in keys]
    return [*shape, *SHORT, f"data.workers={workers}", *micro, *words, *neighbours, *size, *own]


def run_here(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command's entry point in this process, as its launcher would."""
    arguments = [*shlex.split(command, comments=True), *prepare(command, folder, workers=0)]
    if arguments[0] == "accelerate":
        for name, value in LAUNCHED.items():
            monkeypatch.setenv(name, value)
    if arguments[1] == "-m":
        place, name = 2, f"{arguments[2]}.run"
    else:
        place = next(n for n, argument in enumerate(arguments) if argument.endswith(".py"))
        name = arguments[place].removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name)
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
    module.main(arguments[place + 1 :])


def run_launched(command: str, folder: Path) -> str:
    """Run a command with its launcher; return what it said."""
    program, *arguments = [
        *shlex.split(command, comments=True),
        *prepare(command, folder, workers=1),
    ]
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


def test_readmes_way_from_a_folder_of_images_to_a_backbone(after_readme: tuple[Path, str]) -> None:
    folder, output = after_readme
    assert (folder / "mine-encoder/model.safetensors").exists()
    assert "photos/1000.png" in output


def test_the_first_page_has_readmes_commands() -> None:
    readme, start = map(page_commands, (ROOT / "README.md", ROOT / "docs/index.md"))
    assert readme == start


@pytest.mark.parametrize("path", PAGES[1:], ids=lambda path: path.stem)
def test_a_pages_commands_run(
    path: Path, after_readme: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = go_to_copy(after_readme[0], tmp_path, monkeypatch)
    commands = page_commands(path)
    assert commands
    shutil.rmtree("mine-encoder")  # an export writes into a new folder
    for command in filter(is_quick, commands):
        with flaky_http(folder / "shards/mine") as server, pytest.MonkeyPatch.context() as patch:
            run_here(command.replace("https://host", server.url), folder, patch)


def test_the_notebook_pages_program_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/how-to/notebook.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    small = {"data.image_size": 64, "optim.batch_size": 16, "data.workers": 0}
    tiny = dict(key.split("=") for key in [*SHAPE, "target.num_words=16"])
    monkeypatch.setattr(api, "pretrain", functools.partial(api.pretrain, **small, **tiny))
    once = functools.partial(api.finetune, **small, **{"optim.epochs": 1})
    monkeypatch.setattr(api, "finetune", once)
    names: dict[str, Any] = {}
    exec(program, names)
    assert len(names["features"].values) == len(list((checkout / "photos").iterdir()))
    assert names["encoder"].embed_dim == 32
    assert (checkout / "runs/mine-tuned/result.json").exists()


def is_quick(command: str) -> bool:
    """Benchmarks and the drawing of many figures are held by tests of their own."""
    is_readable = HAS_PYARROW or " dataset/" not in command
    return is_readable and "benchmark.py" not in command and "--figures" not in command


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
from pretrain.training.config import RunConfig
from pretrain.training.launch import start
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
    for command in page_commands(ROOT / "README.md"):
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
