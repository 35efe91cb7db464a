"""MST and MST++."""
