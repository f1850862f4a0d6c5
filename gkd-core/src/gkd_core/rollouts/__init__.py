"""Rollouts: text that the student or a teacher writes during training."""
