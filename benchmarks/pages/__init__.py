"""Benchmarks whose results are cited in the documentation."""
