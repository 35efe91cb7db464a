"""Counting operations, and comparing images."""
