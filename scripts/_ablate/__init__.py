"""The parts of ablate.py: the plan, the runs, equal training time, the table."""
