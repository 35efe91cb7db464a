"""The commands, one file each: files in, files out."""
