"""`python -m finetune ARGUMENTS` does what `python finetune/run.py ARGUMENTS` does."""

from functools import partial

from data.processes import begin
from data.settings import run_entry_point
from finetune.run import main

begin()

if __name__ == "__main__":
    run_entry_point(partial(main, command="python -m finetune"))
