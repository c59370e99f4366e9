"""The paper's tables, run and set beside its figures."""
