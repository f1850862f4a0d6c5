"""Launchers: what starts the cells of a study."""
