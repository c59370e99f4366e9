"""Benchmarks whose results pages of the documentation cite."""
