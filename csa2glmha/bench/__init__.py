"""Models against the clock and against each other: what `bench` does."""
