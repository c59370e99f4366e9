"""Optimizers, train steps and compiled programs."""
