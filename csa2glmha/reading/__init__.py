"""Finding the attention layers of a network."""
