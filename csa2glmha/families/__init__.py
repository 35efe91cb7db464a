"""The supported networks."""
