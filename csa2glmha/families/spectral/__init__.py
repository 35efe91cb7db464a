"""What MST and MST++ share."""
