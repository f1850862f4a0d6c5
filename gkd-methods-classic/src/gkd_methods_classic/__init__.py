"""Distillation methods with one teacher and an unchanged forward pass."""
