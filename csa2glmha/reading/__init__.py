"""Finding the attention layers of a network: by the readers of its family, or by recording one run of it."""
