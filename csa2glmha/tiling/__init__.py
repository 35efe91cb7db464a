"""Images that are larger than the memory: tiles that share the attention maps of the whole image."""
