"""Metrics of a model on a split."""
