"""Sources of training crops that are measured."""
