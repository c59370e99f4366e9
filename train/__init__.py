"""The application: `python -m train`."""
