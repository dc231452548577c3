"""What is freed stays with the process: a step's memory is not cleared anew by the system."""

import os
import subprocess
import sys

import pytest

from pretrain.machine.malloc import keep_heap

_SIZES = (3, 12, 48)  # MiB: below and above what glibc takes from its heap of itself
_PAGES = sum(_SIZES) * 2**20 // os.sysconf("SC_PAGE_SIZE")
_STEPS = """
import ctypes, resource, sys
from pretrain.machine.malloc import keep_heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def step():
    blocks = []
    for size in map(int, sys.argv[2:]):
        blocks.append(libc.malloc(size << 20))
        ctypes.memset(blocks[-1], 1, size << 20)
    for block in reversed(blocks):
        libc.free(block)

if sys.argv[1] == "keep":
    assert keep_heap()
for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_")

glibc_only = pytest.mark.skipif(
    not hasattr(os, "confstr") or not (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="glibc's heap",
)


def cleared_pages(*args: str) -> int:
    """Count the pages that the system clears in the third of three equal steps."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(_ALLOCATOR)}
    command = [sys.executable, "-c", _STEPS, *args, *map(str, _SIZES)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc_only
def test_a_step_takes_its_memory_from_the_one_before() -> None:
    assert cleared_pages("keep") < _PAGES // 20
    assert cleared_pages("leave") > _PAGES // 2  # else there would be nothing to gain


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_environment_says_of_the_heap_stays(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "0")
    assert not keep_heap()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(_: None) -> object:
        return object()

    monkeypatch.setattr("pretrain.machine.malloc.ctypes.CDLL", library)
    assert not keep_heap()
