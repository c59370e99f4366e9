"""Optimizers, steps and programs: training, without a run's folder."""
