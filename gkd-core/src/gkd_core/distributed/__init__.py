"""Groups, ranks, collectives and shards; knows no model."""
