"""Launchers: what starts many cells of work, here or elsewhere."""
