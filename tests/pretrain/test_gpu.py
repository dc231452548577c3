"""What only a GPU can show, in one command: `pytest -m gpu`.

Half precision, a resume that is exact there too, steps that the host does not wait in, copies on a
stream of their own, and models that are compiled or cut.
"""

import copy
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed import HashStore
from torch.nn.attention import SDPBackend, sdpa_kernel

import pretrain.run
from data.batch import Batch
from finetune.backbone import flops_per_image, make_backbone
from finetune.config import HeadConfig, MixConfig
from finetune.head import Classifier
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.machine.operations import count_flops
from pretrain.machine.speed import matrix_peak
from pretrain.objective import corruption
from pretrain.objective.config import CorruptionConfig, DecoderConfig, TargetConfig
from pretrain.objective.model import MaskedPatchModel
from pretrain.records.logs import read_records
from pretrain.training.config import OptimConfig, RunConfig
from pretrain.training.device import Copies, to_device
from pretrain.training.launch import start
from pretrain.training.memory import Need
from pretrain.training.parallel import cut
from pretrain.training.trainer import Trainer
from pretrain.vilt.config import LossConfig, TextConfig
from pretrain.vilt.model import Canvas, Pieces, ViltModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
    # what compiling imports
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
]

ENCODER = EncoderConfig(
    name="vit_tiny_patch16_224", patch_size=4, embed_dim=64, depth=3, num_heads=2
)


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in read_records(run / "metrics.jsonl")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_lowers_the_loss(tmp_path: Path, tiny: list[str], precision: str) -> None:
    pretrain.run.main([*tiny, f"run.dir={tmp_path}", f"run.precision={precision}"])
    found = losses(tmp_path)
    assert len(found) == 40
    assert sum(found[-5:]) < 0.95 * sum(found[:5])  # an H100 gave .911 in each precision


def test_measuring_the_peak_leaves_the_memorys_peak_and_the_generators() -> None:
    device = torch.device("cuda")
    torch.zeros(1 << 20, device=device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated(), torch.cuda.get_rng_state()
    assert matrix_peak(device, "bf16", 0.2) > 2 * matrix_peak(device, "fp32", 0.2)
    # what cuBLAS keeps for itself comes on top
    assert torch.cuda.max_memory_allocated() < before[0] + (100 << 20)
    assert torch.equal(torch.cuda.get_rng_state(), before[1])


def test_a_deterministic_run_is_the_same_twice(tmp_path: Path, tiny: list[str]) -> None:
    for name in ("one", "two"):
        arguments = [*tiny, f"run.dir={tmp_path / name}", "run.deterministic=true"]
        pretrain.run.main([*arguments, "run.precision=bf16"])
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_is_bit_for_bit_exact(tmp_path: Path, tiny: list[str], workers: int) -> None:
    arguments = [*tiny, f"run.dir={tmp_path}", "run.deterministic=true", "run.precision=bf16"]
    arguments += [f"data.workers={workers}", "encoder.args.drop_path_rate=0.1", "optim.ema=0.9"]
    pretrain.run.main(arguments)
    weights = tmp_path / "checkpoints/step-00000040/model.safetensors"
    whole = losses(tmp_path), weights.read_bytes()
    for step in (28, 35, 40):
        shutil.rmtree(tmp_path / f"checkpoints/step-{step:08d}")
    pretrain.run.main(arguments)  # goes on at step 21
    assert (losses(tmp_path), weights.read_bytes()) == whole


def test_a_run_with_its_images_on_the_gpu_is_that_of_the_loader(
    tmp_path: Path, tiny: list[str]
) -> None:
    for way in ("true", "false"):
        arguments = [*tiny, "run.deterministic=true", "run.precision=bf16"]
        pretrain.run.main([*arguments, f"data.resident={way}", f"run.dir={tmp_path / way}"])
    assert losses(tmp_path / "true") == losses(tmp_path / "false")


# ---------------------------------------------------------------- steps


def masked(sees_masked: bool = True, **config: Any) -> MaskedPatchModel:
    encoder = make_encoder(ENCODER, (32, 32))
    decoder = None if sees_masked else DecoderConfig()
    return MaskedPatchModel(encoder, CorruptionConfig(**config), TargetConfig(), decoder)


def classifier() -> Classifier:
    names = [str(number) for number in range(10)]
    mix = MixConfig(mixup=0.8, cutmix=1.0)
    return Classifier(make_encoder(ENCODER, (32, 32)), names, HeadConfig(), mix=mix)


def pairs(canvas: Canvas | None = None) -> ViltModel:
    side = 32 if canvas is None else 16
    pieces = Pieces(60, pad=0, mask=4, special=frozenset(range(5)))
    loss = LossConfig(patches=0 if canvas else 1)
    patches = CorruptionConfig(), TargetConfig()
    encoder = make_encoder(ENCODER, (side, side))
    return ViltModel(encoder, pieces, 12, TextConfig(dropout=0.1), loss, patches, canvas)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "paper": masked,
    "blocks": partial(masked, kind="block"),
    "coarse": partial(masked, kind="coarse"),
    "mask-free": partial(masked, sees_masked=False, ratio=0.75),
    "classifier": classifier,
    "pairs": pairs,
    "pairs of any aspect": partial(pairs, Canvas(32, 20)),
}


def batches_of(number: int, size: int = 64, parts: int = 2) -> list[Batch]:
    """Make a step's micro-batches, as a loader gives them: pinned where there is a GPU."""
    generator = torch.Generator().manual_seed(number)
    draw = partial(torch.randint, generator=generator)
    found: list[Batch] = []
    for _ in range(parts):
        tensors = {
            "image": draw(0, 256, (size, 3, 32, 32), dtype=torch.uint8),
            "random_key": draw(0, 1 << 40, (size,)),
            "label": draw(0, 10, (size,)),
            "weight": torch.ones(size),
            "tokens": draw(5, 60, (size, 12)),
            "words": torch.arange(12).expand(size, 12) // 2,
            "pair_tokens": draw(5, 60, (size, 12)),
            "is_match": draw(0, 2, (size,)),
            "num_cut": torch.zeros(size, dtype=torch.int64),
            "grid": torch.stack([draw(1, 5, (size,)), draw(1, 9, (size,))], dim=1),
        }
        if torch.cuda.is_available():
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        found.append(Batch(tensors, [], []))
    return found


def trainer_of(model: nn.Module, run: RunConfig, **optim: Any) -> Trainer:
    config = OptimConfig(steps=100, warmup_steps=0, batch_size=128, **optim)
    return Trainer(start(run), run, config, model, cast(Any, None))


def stepper(model: nn.Module, run: RunConfig, **optim: Any) -> Callable[[int], None]:
    """Return what takes the loop's step of a number."""
    trainer = trainer_of(model, run, **optim)

    def take(number: int) -> None:
        trainer._step(number, batches_of(number))
        trainer._settle(number)

    return take


@contextmanager
def no_waits() -> Generator[None]:
    """Refuse what makes the host wait for the device, but for events."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
@pytest.mark.parametrize("name", MODELS)
def test_the_host_does_not_wait_in_steps(name: str, algorithm: str) -> None:
    run = RunConfig(precision="bf16", micro_batch_size=64)
    take = stepper(MODELS[name](), run, algorithm=algorithm, ema=0.9)
    for number in range(3):
        take(number)
    with no_waits():
        for number in range(3, 8):
            take(number)


@pytest.mark.parametrize("name", ["paper", "blocks", "mask-free", "pairs"])
def test_steps_compile_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile`'s first half alone, which decides that."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    take = stepper(MODELS[name](), RunConfig(precision="bf16", compile=True))
    for number in range(3):
        take(number)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3, 8):
            take(number)


# ---------------------------------------------------------------- compiled and recorded


def compiled_trainer(**run: Any) -> Trainer:
    """Return a trainer of one model for all tests here: what one compiles, the next finds."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    encoder = make_encoder(replace(ENCODER, depth=1, args={"proj_drop_rate": 0.1}), (32, 32))
    model = MaskedPatchModel(
        encoder, CorruptionConfig(ratio=0.75), TargetConfig(), DecoderConfig(width=32)
    )
    keys = RunConfig(precision="bf16", micro_batch_size=64, deterministic=True, **run)
    return trainer_of(model, keys, ema=0.9)


def take_steps(trainer: Trainer, numbers: range, parts: int) -> list[tuple[float, float]]:
    """Take steps of so many micro-batches; return the loss and the gradient's norm of each."""
    found: list[tuple[float, float]] = []
    for number in numbers:
        totals, norm, _ = trainer._step(number, batches_of(number, parts=parts))
        trainer._settle(number)
        found.append((float(totals.reduce(trainer.accelerator)["loss"]), float(norm)))
    return found


@pytest.mark.parametrize("parts", [1, 3])
def test_steps_that_are_recorded_are_the_same(parts: int) -> None:
    """Compiled alone, and recorded, with gradients added up or not; what is measured too."""
    found: list[list[tuple[float, float]]] = []
    for keys in ({}, {"compile": True}, {"compile": True, "cuda_graphs": True}):
        counters.clear()
        trainer = compiled_trainer(**keys)
        found.append(take_steps(trainer, range(4), parts))
        with torch._dynamo.config.patch(error_on_recompile=True):
            found[-1] += take_steps(trainer, range(4, 8), parts)
    eager, compiled, recorded = found
    assert recorded == compiled
    assert counters["inductor"]["cudagraph_skips"] == 0
    for own, other in zip(compiled, eager, strict=True):
        assert own[0] == pytest.approx(other[0], rel=2e-2)  # other sums, other dropped values


def test_a_resume_of_recorded_steps_is_exact(tmp_path: Path) -> None:
    trainer = compiled_trainer(compile=True, cuda_graphs=True)
    take_steps(trainer, range(4), 2)
    trainer.training.save(tmp_path, {}, trainer.training.collect())
    whole = take_steps(trainer, range(4, 8), 2)  # all of them replays
    again = compiled_trainer(compile=True, cuda_graphs=True)
    again.training.load(tmp_path, {})
    assert take_steps(again, range(4, 8), 2) == whole  # the first of them are not


def test_the_host_does_not_wait_in_recorded_steps() -> None:
    trainer = compiled_trainer(compile=True, cuda_graphs=True)
    take_steps(trainer, range(4), 2)
    with no_waits():
        for number in range(4, 8):
            trainer._step(number, batches_of(number))
            trainer._settle(number)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_patches_are_embedded_as_by_a_convolution(precision: torch.dtype) -> None:
    found: list[dict[str, Tensor]] = []
    for kind in ("auto", "conv"):
        torch.manual_seed(0)
        encoder = make_encoder(replace(ENCODER, patch_embed=kind), (32, 32)).cuda()
        images = torch.randn(8, 3, 32, 32, device="cuda")
        with torch.autocast("cuda", precision, enabled=precision is not torch.float32):
            embedded = encoder.patch_embed(images)
        embedded.float().square().sum().backward()
        parameters = encoder.patch_embed.named_parameters()
        gradients = {name: cast(Tensor, value.grad) for name, value in parameters}
        found.append(gradients | {"embedded": embedded.detach().float()})
    for name, value in found[0].items():
        error = float((value - found[1][name]).norm() / value.norm())
        assert error < (1e-3 if precision is torch.float32 else 1e-2), name  # fp32 may be TF32


# ---------------------------------------------------------------- copies


def test_copies_run_beside_what_is_computed() -> None:
    device = torch.device("cuda")
    own, seen = Copies(device), list[tuple[Tensor, Tensor]]()
    started, passed = torch.cuda.Event(), torch.cuda.Event()
    for number in range(20):  # of a few: memory that is used again too early would show
        tensors = batches_of(number, size=2048, parts=1)[0].tensors
        torch.cuda._sleep(20_000_000)  # about 10 ms
        moved = own(tensors)
        seen.append((moved["image"].sum(dtype=torch.int64), tensors["image"].sum()))
        del moved
    assert all(int(found) == int(right) for found, right in seen)
    torch.cuda._sleep(1_000_000_000)  # half a second
    started.record()
    tensors = batches_of(99)[0].tensors
    with no_waits():
        own(tensors)
    assert own._stream is not None
    passed.record(own._stream)
    passed.synchronize()
    assert not started.query()  # the copy is there, and what was given before it is still computed


@pytest.mark.parametrize("kind", ["random", "block", "coarse"])
def test_choices_are_those_of_a_cpu(kind: str) -> None:
    keys = torch.arange(500) * 7_919
    here = corruption.draw(keys, (14, 14), CorruptionConfig(kind))
    there = corruption.draw(keys.cuda(), (14, 14), CorruptionConfig(kind))
    for own, other in zip(here[:3], there[:3], strict=True):
        assert torch.equal(own, other.cpu())


# ---------------------------------------------------------------- a model that is cut


@pytest.fixture
def lone_rank() -> Iterator[None]:
    """Start a process group of this process alone."""
    torch.distributed.init_process_group("nccl", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("lone_rank")
def test_a_model_that_is_cut_trains_as_a_whole_one() -> None:
    device = torch.device("cuda")
    whole = masked().to(device)
    pieces = copy.deepcopy(whole)
    cut(pieces, cast(Any, SimpleNamespace(device=device, num_processes=1)))
    batch = to_device(batches_of(0)[0].tensors, device)
    found: list[list[float]] = []
    for model in (whole, pieces):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        found.append([])
        for _ in range(4):
            loss = model(batch).loss / 64
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found[-1].append(float(loss.detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][-1] < found[0][0]


@pytest.mark.parametrize(
    "kernel",
    [
        SDPBackend.MATH,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        None,  # the one that torch chooses
    ],
)
def test_each_kernel_of_attention_counts_as_the_formula(kernel: SDPBackend | None) -> None:
    product = 2 * 2 * 4 * 128 * 128 * 64  # query @ key
    q, k, v = (
        torch.randn(2, 4, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    with nullcontext() if kernel is None else sdpa_kernel(kernel):
        with torch.no_grad():
            forward = count_flops(lambda: F.scaled_dot_product_attention(q, k, v))
        loss = partial(F.scaled_dot_product_attention, q, k, v)
        both = count_flops(lambda: torch.autograd.backward(loss().sum()))
    assert forward == 2 * product
    again = kernel is not SDPBackend.MATH  # a fused kernel computes query @ key again
    assert both == (6 + again) * product


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_encoders_operations_are_those_of_the_cpu(precision: torch.dtype) -> None:
    encoder = make_backbone(ENCODER, (32, 32))
    expected = flops_per_image(encoder)
    with torch.autocast("cuda", precision, enabled=precision is not torch.float32):
        assert flops_per_image(encoder.cuda()) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_takes_what_was_counted_and_little_more(
    tmp_path: Path, tiny: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    count = Need.bytes

    def note(need: Need, num_images: int, saved: int) -> int:
        counted.append(count(need, num_images, saved))
        return counted[-1]

    monkeypatch.setattr(Need, "bytes", note)
    larger = ["encoder.embed_dim=256", "data.image_size=64", "optim.batch_size=32"]
    short = ["optim.steps=3", "optim.warmup_steps=0", "run.eval_every=0"]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arguments = [*tiny, *larger, *short, f"run.precision={precision}", f"run.dir={tmp_path}"]
    pretrain.run.main(arguments)
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.6 * taken < counted[0] <= taken
