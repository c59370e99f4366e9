"""`python -m benchmarks`: resumable measurements on an accelerator."""
