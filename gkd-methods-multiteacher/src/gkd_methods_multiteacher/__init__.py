"""Distillation with several teachers and with teacher assistants."""
