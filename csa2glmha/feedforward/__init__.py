"""Feed-forward networks: their form, which hidden channels go, and what takes their place."""
