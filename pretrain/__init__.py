"""Masked patch prediction: objective, encoder, loop, checkpoints."""
