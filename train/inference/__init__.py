"""What is done with a trained network: load it, evaluate it, predict with it."""
