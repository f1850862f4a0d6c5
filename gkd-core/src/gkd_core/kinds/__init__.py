"""Kinds of task: what is predicted."""
