"""Studies: many runs that differ in a few settings, so that they can be compared."""
