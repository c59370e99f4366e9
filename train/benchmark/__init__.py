"""`python -m train benchmark`: what a step costs."""
