"""Accuracy against learning rate: sweeps and ranges of usable learning rates."""
