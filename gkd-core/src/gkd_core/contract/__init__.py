"""The base classes that plugins subclass and the records that they receive."""
