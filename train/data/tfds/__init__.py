"""Data sets as files of tensorflow-datasets: where they lie, and how they are written."""
