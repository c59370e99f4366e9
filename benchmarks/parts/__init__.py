"""The parts (a) to (f): what is measured, and how."""
