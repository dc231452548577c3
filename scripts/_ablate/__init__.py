"""What ablate.py is made of: the plan, the jobs that it runs, equal wall time, the table."""
