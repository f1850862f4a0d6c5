"""Distillation methods that use one teacher and leave the forward pass unchanged."""
