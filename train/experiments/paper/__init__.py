"""Reproductions of the paper's tables."""
