"""What is recorded during a run, and the report made of it."""
