"""What MST, MST++ and Retinexformer share."""
