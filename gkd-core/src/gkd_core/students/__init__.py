"""Building, slicing and pruning of students."""
