"""Paths, extraction from a forward pass, attention capture, early stop, plans."""
