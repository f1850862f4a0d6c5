"""Tasks of benchmarks by name, with their official splits and metrics."""
