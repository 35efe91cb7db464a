"""What `run` does: files in, restored files out."""
