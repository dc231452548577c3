"""Training steps and runs that are measured."""
