"""The memory, arithmetic and communication of a run, estimated without its machine."""
