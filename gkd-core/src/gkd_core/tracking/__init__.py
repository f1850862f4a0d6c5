"""Recording of a run's progress: recorder, display, and sinks that keep a record elsewhere."""
