"""Series of runs and their reports."""
