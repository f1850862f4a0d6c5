"""Groups, ranks, collectives and shards, independent of any model."""
