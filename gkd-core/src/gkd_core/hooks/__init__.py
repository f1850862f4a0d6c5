"""Capture and change of tensors in a forward pass: paths, extraction, attention, operations."""
