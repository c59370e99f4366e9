"""Loading, evaluation and predictions of trained networks."""
