"""Recording of a run's progress: recorder, sinks and display."""
