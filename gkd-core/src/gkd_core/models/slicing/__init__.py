"""Structured slicing: removal of whole heads, feed-forward neurons and blocks from a model."""
