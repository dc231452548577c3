"""`mpp COMMAND ARGUMENTS`: each command is the entry point that exists, under one short name.

`mpp pretrain`, `finetune`, `vilt` and `vilt-classify` start a process on each GPU of the machine by
`accelerate launch`. Within a launcher or Slurm they are one process, as the entry point itself is.
"""

import os
import platform
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.commands import CHECKOUT, COMMANDS
from data.processes import begin
from data.settings import UserError, require, run_entry_point
from data.text import count
from pretrain.machine.gpus import count_gpus, is_one_of_many, launch_command, replace_by_launcher

begin()

_LAUNCHED = ("pretrain", "finetune", "vilt", "vilt-classify")
_CONFIGURED = (*_LAUNCHED, "fewshot", "probe", "dense")  # no parser of theirs knows the name
_WAY = """\
mpp: from a folder of images without labels to a vision transformer of your own

  mpp recommend photos/ --out mine.yaml         a recipe for these images and this machine
  mpp pretrain mine.yaml run.dir=runs/mine      learn from the images; the same again resumes
  mpp status runs/mine                          how far it is; mpp report runs/mine: its pictures
  mpp probe encoder.init=runs/mine data.train=labelled/train data.val=labelled/val
                                                is it any good: classify with the encoder frozen
  mpp finetune configs/finetune/small.yaml encoder.init=runs/mine run.dir=runs/tuned \\
      data.train=labelled/train data.val=labelled/val
  mpp predict runs/tuned photos/                name what is in new images
  mpp export runs/mine mine-encoder             a backbone that timm loads; mpp embed: features

all commands: {commands}
mpp COMMAND --help lists what it takes; mpp --version"""


def main() -> None:
    """Run `mpp COMMAND ARGUMENTS`: what the console script calls."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        run_entry_point(_answer)
        return
    sys.argv = [f"mpp {name}", *sys.argv[2:]]
    run_entry_point(partial(_run, name))


def _answer(arguments: list[str]) -> None:
    """Show the way or the version; refuse what is no command."""
    if arguments[:1] == ["--version"]:
        print(_version())
        return
    if arguments and arguments[0] not in ("-h", "--help", "help"):
        near = get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"did you mean mpp {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"mpp {arguments[0]} is no command; {hint}")
    print(_WAY.format(commands=" ".join(COMMANDS)))


def _version() -> str:
    try:
        own = version("masked-patch-pretraining")
    except PackageNotFoundError:
        own = "(not installed)"
    return f"mpp {own}, Python {platform.python_version()}, torch {version('torch')}, {CHECKOUT}"


def _run(name: str, arguments: list[str]) -> None:
    file = CHECKOUT / COMMANDS[name]
    require(
        file.is_file(),
        f"mpp {name}: {file} is not there; install from a checkout: pip install -e CHECKOUT",
    )
    sys.path.insert(0, str(CHECKOUT))  # scripts/ is no part of what pip installs
    entry_point: Any = import_module(COMMANDS[name].removesuffix(".py").replace("/", "."))
    if name in _LAUNCHED and not {"-h", "--help"} & set(arguments):
        _launch(file, entry_point.read, arguments)
    if name in _CONFIGURED:
        entry_point.main(arguments, command=f"mpp {name}")
    else:
        entry_point.main(arguments)


def _launch(script: Path, read: Callable[[list[str]], object], arguments: list[str]) -> None:
    """Become `accelerate launch` where this machine has several GPUs and nobody launched this."""
    if is_one_of_many(os.environ) or (num := count_gpus(os.environ)) < 2:
        return
    read(arguments)  # a mistake is told here: a launcher takes seconds, and makes its status 1
    text = f"{count(num, 'GPU')}: starting a process on each (CUDA_VISIBLE_DEVICES=0 takes one)"
    print(text, file=sys.stderr)
    config = CHECKOUT / "configs/accelerate/ddp.yaml"
    replace_by_launcher(launch_command(num, config, script, arguments))


if __name__ == "__main__":
    main()
