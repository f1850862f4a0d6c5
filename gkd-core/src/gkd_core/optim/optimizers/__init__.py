"""The optimizers that core provides, one file each."""
