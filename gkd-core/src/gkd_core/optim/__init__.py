"""Engines, optimizers and precision."""
