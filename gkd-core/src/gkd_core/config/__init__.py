"""User requirements: the schema, sources of values, method expressions and recipes."""
