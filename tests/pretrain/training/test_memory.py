"""Whether a run fits: what is counted, what is refused at the start, and memory that runs out."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

import finetune.run
import pretrain.run
from data.settings import RunStopped, UserError, memory_errors, run_entry_point
from data.stream import Share
from pretrain.config import PretrainConfig
from pretrain.configuration.layers import read_yaml
from pretrain.configuration.load import load
from pretrain.encoder import make_encoder
from pretrain.encoder.timm_model import create_model
from pretrain.machine import free_memory
from pretrain.machine.free_memory import free_bytes
from pretrain.objective.model import MaskedPatchModel
from pretrain.training import memory
from pretrain.training.config import OptimConfig, RunConfig
from pretrain.training.examples import example_batch
from pretrain.training.memory import Need, check_fits, count_saved_bytes
from pretrain.training.state import load_weights
from tests.launching import run_forked

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
MIB = 2**20


def model_of(arguments: list[str]) -> tuple[PretrainConfig, MaskedPatchModel]:
    batch = [] if any("batch_size" in text for text in arguments) else ["optim.batch_size=4096"]
    config = load(PretrainConfig, [*arguments, *batch, "data.shards=unread"])
    encoder = make_encoder(config.encoder, config.data.size)
    return config, MaskedPatchModel(encoder, config.corruption, config.target)


def need_of(arguments: list[str]) -> Need:
    config, model = model_of(arguments)
    return Need(model, config.run, config.optim, CPU, 1, config.optim.num_images)


def give(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let so many bytes be free."""

    def free(_: torch.device) -> int:
        return number

    monkeypatch.setattr(memory, "free_bytes", free)


# ---------------------------------------------------------------- what is counted


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_images", [1, 7])
def test_what_a_pass_keeps_is_counted_to_the_byte(
    encoder: list[str], precision: str, num_images: int
) -> None:
    need = need_of([*encoder, f"run.precision={precision}"])
    batch = example_batch(need.model.encoder, num_images)
    expected = count_saved_bytes(need.model, batch, precision)
    assert need.saved(num_images) == expected > 50_000 * num_images


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch without CUDA")
@pytest.mark.parametrize(
    "own", [[], ["target.kind=words", "target.num_words=16"], ["corruption.kind=block"]]
)
def test_a_gpus_passes_are_counted_without_one(encoder: list[str], own: list[str]) -> None:
    need = need_of([*encoder, *own])
    there = replace(need, device=torch.device("cuda")).saved(8)
    assert need.saved(8) <= there < 1.2 * need.saved(8)


def test_counting_leaves_the_model_and_all_generators_as_they_were(encoder: list[str]) -> None:
    arguments = [*encoder, "encoder.args.drop_path_rate=0.3", "encoder.args.proj_drop_rate=0.3"]
    config, model = model_of([*arguments, "optim.batch_size=8"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numpy_state = np.random.get_state()  # noqa: NPY002 - timm draws from it
    torch_state = torch.get_rng_state()
    check_fits(Accelerator(cpu=True), config.run, config.optim, Share(0, 1, 8), model)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(), numpy_state)  # noqa: NPY002
    for name, tensor in model.state_dict().items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, before[name])


def test_the_parts_of_a_step_are_counted_when_they_are_there() -> None:
    layer: Any = torch.nn.Linear(9, 10)  # 100 parameters
    for optim, images, expected in (
        (OptimConfig(batch_size=4), 4, 1200 + 5000),  # weights, moments, and what is kept
        (OptimConfig(batch_size=4), 2, 1600 + 5000),  # passes are added up: gradients, too
        (OptimConfig(batch_size=4, ema=0.9), 4, 1600 + 5000),
        (OptimConfig(batch_size=4, steps=1, warmup_steps=0), 4, 400 + 5000),
        (OptimConfig(batch_size=4, algorithm="sgd"), 4, 800 + 5000),
    ):
        assert Need(layer, RunConfig(), optim, CPU, 1, 4).bytes(images, 5000) == expected
        assert Need(layer, RunConfig(), optim, CPU, 4, 4).bytes(images, 5000) < expected
        largest = Need(layer, RunConfig(), optim, CPU, 1, 4).bytes(images, 0)
        assert largest == 400 * (1 + bool(optim.ema) + 1 + memory._num_moments(optim))


def test_a_compiled_model_may_keep_anything(encoder: list[str]) -> None:
    assert need_of([*encoder, "run.compile=true"]).saved(4) == 0


MEASURE = """
import json, sys
from pathlib import Path
from pretrain.training import memory; from pretrain import run

def status(key):
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(rows[key].split()[0])

count, found = memory.Need.bytes, {}

def note(need, num_images, saved):
    found["need"] = count(need, num_images, saved)
    found["held"] = status("VmRSS") - memory._weight_bytes(need.model, need.optim)
    return found["need"]

memory.Need.bytes = note
run.main(sys.argv[1:])
print(json.dumps(found | {"peak": status("VmHWM")}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("own", [[], ["run.precision=bf16"], ["run.micro_batch_size=16"]])
def test_a_run_takes_no_less_than_what_is_counted(
    tmp_path: Path, tiny: list[str], own: list[str]
) -> None:
    """So that what fits is never refused."""
    (tmp_path / "measure.py").write_text(MEASURE)
    larger = ["encoder.embed_dim=256", "data.image_size=64", "optim.steps=2", "run.eval_every=0"]
    arguments = [*tiny, *larger, "optim.batch_size=32", "optim.warmup_steps=0", "optim.ema=0.9"]
    script = [sys.executable, str(tmp_path / "measure.py"), *arguments, *own]
    done = run_forked(
        [*script, f"run.dir={tmp_path}/run"], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    taken = found["peak"] - found["held"]
    assert 100 * MIB < found["need"] < taken


# ---------------------------------------------------------------- what is refused


@pytest.mark.slow
def test_a_batch_that_cannot_fit_is_refused_with_one_that_does(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    need = need_of([*tiny, "optim.batch_size=32"])
    arguments = [*tiny, "optim.batch_size=32", f"run.dir={tmp_path}/run", "optim.steps=2"]
    arguments += ["optim.warmup_steps=0"]
    weights = 4 * sum(parameter.numel() for parameter in need.model.parameters())
    give(monkeypatch, int(need.bytes(8, need.saved(8)) / 0.9) + 100 - weights)
    with pytest.raises(UserError) as caught:
        pretrain.run.main([*arguments, "run.micro_batch_size=32"])
    said = r"a forward pass of 32 images takes [\d.]+ GiB or more, and [\d.]+ GiB are free on cpu"
    advised = r"run\.micro_batch_size=8 should fit, and trains alike"
    assert re.fullmatch(f"{said}; {advised}", str(caught.value))
    assert not (tmp_path / "run").exists()
    pretrain.run.main(arguments)  # 8 are chosen, and kept
    config = read_yaml(f"{tmp_path}/run/config.yaml")
    assert config["run"]["micro_batch_size"] == 8
    monkeypatch.undo()
    pretrain.run.main(arguments)
    assert read_yaml(f"{tmp_path}/run/config.yaml") == config


@pytest.mark.slow
def test_the_most_images_of_a_pass_are_a_divisor_that_fits(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    need = need_of([*tiny, "optim.batch_size=12"])
    assert memory.most_images(need) == 12
    weights = 4 * sum(parameter.numel() for parameter in need.model.parameters())
    give(monkeypatch, int(need.bytes(4, need.saved(4)) / 0.9) + 100 - weights)
    assert memory.most_images(need) == 4
    give(monkeypatch, 1)
    assert memory.most_images(need) is None

    def nobody_knows(_: torch.device) -> None:
        return None

    monkeypatch.setattr(memory, "free_bytes", nobody_knows)
    assert memory.most_images(need) == 12


def test_what_cannot_fit_at_all_names_a_smaller_encoder(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ["encoder.embed_dim=1024", "encoder.depth=6", "encoder.num_heads=16"]
    give(monkeypatch, 500 * MIB)
    with pytest.raises(UserError, match=r"not fit either: try .* configs/encoder/s\.yaml$"):
        pretrain.run.main([*tiny, *sizes, f"run.dir={tmp_path}"])
    give(monkeypatch, 1)
    with pytest.raises(UserError, match=r"try a smaller encoder, smaller images, or run\.grad_ch"):
        pretrain.run.main([*tiny, f"run.dir={tmp_path}"])


def test_fine_tuning_is_refused_too_and_pairs_stay_pairs(
    tmp_path: Path, tiny_finetune: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(need: Need, num_images: int, _: int) -> int:
        return 200 * num_images

    monkeypatch.setattr(Need, "bytes", too_much)

    def free(_: Need) -> int:
        return 700

    monkeypatch.setattr(memory, "_free_for", free)
    arguments = [*tiny_finetune, "optim.batch_size=6", f"run.dir={tmp_path}", "encoder.init=none"]
    arguments += ["run.micro_batch_size=6"]
    for own, fitting in (([], 3), (["mix.mixup=0.8"], 2)):
        with pytest.raises(UserError, match=rf"run\.micro_batch_size={fitting} should fit"):
            finetune.run.main([*arguments, *own])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_any_model_that_fits_is_let_through(name: str, shards: Path, tmp_path: Path) -> None:
    data = [f"data.train={shards}/train-0.tar", f"data.val={shards}/val-0.tar", "data.workers=0"]
    own = ["encoder.init=none", f"encoder.name={name}", "data.image_size=32", "optim.steps=1"]
    optim = ["optim.batch_size=4", "optim.warmup_steps=0", "run.threads=1"]
    finetune.run.main([*data, *own, *optim, f"run.dir={tmp_path}/run"])


# ---------------------------------------------------------------- what is free


def lay(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine of 8 GiB, 6 of them free, without swap or control groups."""
    lay(tmp_path / "proc", meminfo="MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\nSwapFree: 0 kB")
    lay(tmp_path / "proc/self", cgroup="")
    monkeypatch.setattr(free_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(free_memory, "_CGROUPS", tmp_path / "cgroup")
    return tmp_path


def test_the_system_says_what_is_free(system: Path) -> None:
    assert free_bytes(CPU) == 6 << 30
    lay(system / "proc", meminfo="MemAvailable: 1048576 kB\nSwapFree: 2097152 kB")
    assert free_bytes(CPU) == 3 << 30
    (system / "proc/meminfo").unlink()
    assert free_bytes(CPU) is None  # such as on macOS


@pytest.mark.parametrize("path", ["/", "/a/b"])
def test_a_containers_limit_holds(system: Path, path: str) -> None:
    lay(system / "proc/self", cgroup=f"0::{path}\n")
    own = system / "cgroup" / path.lstrip("/")
    stat = f"anon 5\nfile {1 << 30}\n"
    lay(own, memory__max="max", memory__current="5", memory__stat=stat)
    full = {"memory__max": f"{4 << 30}", "memory__current": f"{3 << 30}"}
    lay(system / "cgroup", **full, memory__stat=stat)
    assert free_bytes(CPU) == 2 << 30  # files in memory can go


def test_an_older_containers_limit_holds(system: Path) -> None:
    lay(system / "proc/self", cgroup="3:cpu:/x\n5:memory:/of/outside\n")
    names = {"memory__limit_in_bytes": f"{4 << 30}", "memory__usage_in_bytes": f"{3 << 30}"}
    lay(system / "cgroup/memory", **names, memory__stat="total_cache 0\n")
    assert free_bytes(CPU) == 1 << 30


# ---------------------------------------------------------------- memory that runs out


def python() -> None:
    raise MemoryError


def allocator() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def cuda() -> None:
    free = "GPU 0 has a total capacity of 139.80 GiB of which 6.55 GiB is free."
    more = "Including non-PyTorch memory, this process has 133.23 GiB memory in use. See more"
    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 18.47 GiB. {free} {more}")


def fork() -> None:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize("fail", [python, allocator, cuda, fork])
def test_memory_that_runs_out_is_one_line(
    fail: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = r"^memory ran out: .*; try a smaller batch$"
    with pytest.raises(RunStopped, match=text), memory_errors("a smaller batch"):
        fail()
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as caught:
        run_entry_point(lambda _: fail())
    assert caught.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped: memory ran out: ")
    assert "non-PyTorch" not in line  # the remedy would stand behind four sentences of torch's


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("shape"), OSError(2, "no file")):
        with pytest.raises(type(error)), memory_errors("nothing"):
            raise error


def test_memory_that_runs_out_is_no_mistake_in_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        allocator()

    model = torch.nn.Linear(1, 1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        create_model("vit_tiny_patch16_224", {})
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_weights(model, tmp_path)


LIMITED = """
import resource, runpy, sys
from pathlib import Path
held = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
limit = held + (600 << 20)  # of which threads reserve some
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("script", "remedy"),
    [
        ("pretrain/run.py", "a smaller run.micro_batch_size"),
        ("finetune/run.py", "a smaller run.micro_batch_size"),
        ("finetune/fewshot.py", "a smaller fewshot.batch_size"),
        ("finetune/probe.py", "a smaller probe.batch_size"),
    ],
)
def test_each_entry_point_ends_in_one_line(
    tmp_path: Path, shards: Path, encoder: list[str], script: str, remedy: str
) -> None:
    (tmp_path / "limited.py").write_text(LIMITED)
    group = "run" if script.endswith("run.py") else Path(script).stem
    data = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-0.tar"]
    if script == "pretrain/run.py":
        data = [f"data.shards={shards}/train-*.tar"]
    size = ["encoder.embed_dim=512", "data.image_size=144", f"{group}.threads=1"]
    batch = ["optim.batch_size=36"] if group == "run" else [f"{group}.batch_size=36"]
    shots = ["fewshot.shots=[1]"] if group == "fewshot" else []
    own = [*encoder, *size, *data, "data.workers=0", "encoder.init=none", *batch, *shots]
    command = [sys.executable, str(tmp_path / "limited.py"), str(ROOT / script), *own]
    done = run_forked([*command, f"{group}.dir={tmp_path}/run"])
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stopped: memory ran out: "), done.stderr
    assert last.endswith(f"; try {remedy}")
    assert "Traceback" not in done.stderr
