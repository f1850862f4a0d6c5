"""The parts of `match`: term descriptions, layer pairing and comparison."""
