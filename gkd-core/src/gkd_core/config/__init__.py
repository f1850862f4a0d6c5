"""User requirements: the schema, where values come from, method expressions, recipes."""
