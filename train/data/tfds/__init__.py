"""Datasets in the file format of tensorflow-datasets."""
