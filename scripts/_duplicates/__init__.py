"""The parts of duplicates.py."""
