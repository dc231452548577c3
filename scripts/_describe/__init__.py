"""The parts of `scripts/describe.py`."""
