"""Methods that reach inside the model."""
