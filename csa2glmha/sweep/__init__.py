"""Several conversions of one checkpoint, side by side."""
