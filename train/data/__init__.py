"""Datasets: reading, decoding, preparing and batching."""
