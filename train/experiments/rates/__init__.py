"""Accuracy against learning rate: sweeps, and how far apart usable rates lie."""
