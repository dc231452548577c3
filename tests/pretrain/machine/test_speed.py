"""How fast work is, and the peak of matrix products, which leaves everything as it was."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pretrain.machine import speed
from pretrain.machine.held_memory import has_memory_counter, held_memory
from pretrain.machine.speed import images_per_second, matrix_peak

CPU = torch.device("cpu")


def test_work_is_done_at_least_once() -> None:
    calls: list[int] = []
    assert images_per_second(lambda: calls.append(1), num_images=5, seconds=0.0) > 0
    assert calls == [1]


def test_a_gpu_is_waited_for_before_and_after_and_not_at_each_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.accelerator.synchronize", lambda: events.append("wait"))

    def work() -> None:
        events.append("work")
        time.sleep(0.01)

    assert 0 < images_per_second(work, num_images=5, seconds=0.05) < 500
    first, waited = ["wait", "work", "wait"], ["wait"]
    assert events == [*first, *waited, *["work"] * (len(events) - 5), *waited]
    assert len(events) > 5


# ---------------------------------------------------------------- the peak


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in one thread: two wait for each other where other tests hold the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_peak_is_measured_in_under_a_second_and_is_never_far_below_a_product(
    precision: str, one_thread: None
) -> None:
    """In one of five rounds at least: in each of them other programs may hold up either."""
    matrix_peak(CPU, precision, 0.01)  # its code is loaded
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    left = torch.ones(300, 300, dtype=dtype)

    def is_above_half_a_product() -> bool:
        begin = time.process_time()
        peak = matrix_peak(CPU, precision, 0.2)
        assert time.process_time() - begin < 1.0
        return peak > 0.5 * images_per_second(lambda: left @ left, 2 * 300**3, 0.02)

    assert any(is_above_half_a_product() for _ in range(5))


def test_a_slow_device_stays_at_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that products alone move: other programs may hold them up."""
    sides: list[int] = []
    now = [0.0]
    multiply = torch.mm

    def slow(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        sides.append(len(left))
        now[0] += 0.003 * (len(left) / 256) ** 3
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", slow)
    monkeypatch.setattr(speed, "clock", lambda: now[0])
    matrix_peak(CPU, "fp32", 0.1)
    assert set(sides) == {256}
    sides.clear()
    matrix_peak(CPU, "fp32", 0.8)
    assert set(sides) == {256, 512}


def test_measuring_the_peak_changes_no_generator_and_no_setting() -> None:
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    settings = _settings()
    matrix_peak(CPU, "bf16", 0.01)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(), before[1])  # noqa: NPY002
    assert _settings() == settings


def _settings() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


@pytest.mark.skipif(not has_memory_counter(), reason="no /proc")
def test_measuring_the_peak_takes_little_memory() -> None:
    matrix_peak(CPU, "fp32", 0.01)
    before = held_memory().now
    matrix_peak(CPU, "fp32", 0.2)
    assert held_memory().now - before < 64 << 20
