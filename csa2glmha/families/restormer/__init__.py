"""Restormer."""
