"""Running networks on images of any size, in tiles that share the attention maps of the whole image."""
