"""Data sets: read, decoded, prepared, and handed to the device."""
