"""Several teachers and teacher assistants."""
