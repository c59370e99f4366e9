"""`python -m benchmarks`: what a GPU is wanted for, in pieces that stop and go on."""
