"""`python -m pretrain ARGUMENTS` does what `python pretrain/run.py ARGUMENTS` does."""

from functools import partial

from data.processes import begin
from data.settings import run_entry_point
from pretrain.run import main

begin()

if __name__ == "__main__":
    run_entry_point(partial(main, command="python -m pretrain"))
