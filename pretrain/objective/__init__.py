"""Masked patch prediction: corruption, targets, model."""
