"""Loading models, building students, and naming the sites of an architecture."""
