"""The launcher of a run's processes, `accelerate launch` or torchrun, and what it sets."""

import os
from pathlib import Path
from typing import NoReturn

from data.settings import UserError, require

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # ours -> accelerate's name
TRUE = ("1", "true", "yes", "on", "y", "t")
_USES = "ACCELERATE_USE_"
_USES_CPU = "ACCELERATE_USE_CPU"  # a device, and none of its ways to train


def check_launcher(precision: str, group: str = "run") -> None:
    """Refuse what accelerate's own configuration would change behind the run's back.

    Args:
        precision: That of the run.
        group: Where its key is in the whole configuration; `run` has others that help, too.

    Raises:
        UserError: It would change the result, or how it is computed.
    """

    def refuse(what: str, remedy: str) -> NoReturn:
        remedy = f", and set {remedy}" if group == "run" and remedy else ""
        raise UserError(
            f"accelerate is configured for {what}; leave it out of its configuration{remedy}"
        )

    for name in sorted(os.environ):
        if name.startswith(_USES) and name != _USES_CPU and os.environ[name].lower() in TRUE:
            is_fsdp = name.endswith("FSDP")
            refuse(name.removeprefix(_USES), "run.parallel=fsdp" if is_fsdp else "")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        refuse(f"dynamo_backend={backend}", "run.compile=true")
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        refuse(f"gradient_accumulation_steps={accumulation}", "run.micro_batch_size instead")
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    require(
        configured in ("no", PRECISIONS[precision]),
        f"accelerate is configured for mixed_precision={configured}, but "
        f"{group}.precision={precision}; "
        + (
            f"set {group}.precision={configured}"
            if configured in PRECISIONS
            else "leave it out there"
        ),
    )


def is_launched() -> bool:
    """Tell whether `accelerate launch` or torchrun started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def has_chosen_threads() -> bool:
    """Tell whether the user, and not the launcher, set `OMP_NUM_THREADS`.

    Both launchers set it to 1 where it is not set. What the launcher itself was given tells the two
    apart; where that cannot be read, as on macOS, a 1 is taken for the launcher's.
    """
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None or not is_launched() or value != "1":
        return value is not None
    launcher = Path(f"/proc/{os.getppid()}")
    try:
        environment = (launcher / "environ").read_bytes().split(b"\0")
        arguments = (launcher / "cmdline").read_bytes()
    except OSError:
        return False
    is_in_shell = any(entry.startswith(b"OMP_NUM_THREADS=") for entry in environment)
    return is_in_shell or b"num_cpu_threads_per_process" in arguments.replace(b"-", b"_")


def why_threads(threads: int) -> str:
    """Say whose choice the number of CPU threads was."""
    if threads:
        return "as asked"
    return "OMP_NUM_THREADS" if has_chosen_threads() else "all cores, shared by the processes"
