"""`python -m train benchmark`: time and memory of a train step."""
