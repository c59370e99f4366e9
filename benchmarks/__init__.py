"""`python -m benchmarks`: measurements on an accelerator, which can be resumed."""
