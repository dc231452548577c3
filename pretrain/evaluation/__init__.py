"""Evaluating a frozen encoder: features, classifiers, the probe while pretraining."""
