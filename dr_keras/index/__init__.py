"""Embedding images, searching a gallery, measuring how well it is ranked."""
