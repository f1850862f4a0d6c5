"""Models: loading, saving, slicing, and naming the sites of an architecture."""
