"""Many runs: shared among processes, and what came of them."""
