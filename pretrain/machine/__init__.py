"""The machine and what launched the run: memory, signals, launchers."""
