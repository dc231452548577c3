"""Looking at the machine: cores, memory, GPUs."""

import platform
from pathlib import Path

import torch

from data.devices import has_mps, mps_has_bf16, num_cores
from pretrain.machine.free_memory import free_bytes
from scripts._recommend.facts import Machine

_CPU_INFO = Path("/proc/cpuinfo")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux calls such instructions


def look_at_machine() -> Machine:
    """Look at what a run would compute on; nothing is timed."""
    cores, threads = num_cores(), torch.get_num_threads()
    if torch.cuda.is_available():
        number, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
        memory = free_bytes(torch.device("cuda", 0))
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Machine("cuda", name, number, cores, threads, memory, has_bf16)
    if has_mps():
        return Machine("mps", "Apple's MPS", 0, cores, threads, None, mps_has_bf16())
    memory = free_bytes(torch.device("cpu"))
    return Machine("cpu", _processor(), 0, cores, threads, memory, _has_bf16())


def _processor() -> str:
    """Return the processor's name, as far as the system says it."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _has_bf16() -> bool:
    """Tell whether the processor has instructions for bf16; elsewhere it is slower than fp32."""
    words = {*_cpu_info("flags").split(), *_cpu_info("Features").split()}  # of x86; of ARM
    return bool(_BF16 & words)


def _cpu_info(name: str) -> str:
    """Return what Linux says of the first core; empty elsewhere."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
