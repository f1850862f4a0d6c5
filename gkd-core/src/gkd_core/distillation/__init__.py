"""A whole distillation, from a configuration to the comparison: of the command and of Python."""
