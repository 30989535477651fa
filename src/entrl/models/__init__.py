"""Models: how they are found, loaded and folded together."""
