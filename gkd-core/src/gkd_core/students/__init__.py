"""Building, slicing and pruning students."""
