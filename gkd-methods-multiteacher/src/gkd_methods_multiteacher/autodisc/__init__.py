"""AutoDisc: find the best teacher assistant by training all candidates at once."""
