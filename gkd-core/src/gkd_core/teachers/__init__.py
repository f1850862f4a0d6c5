"""Where a teacher's answers come from: a live model, or a source that a plugin provides."""
