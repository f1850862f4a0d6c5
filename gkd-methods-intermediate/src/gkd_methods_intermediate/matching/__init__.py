"""The parts of `match`: what a term says, which layers it pairs, how it compares them."""
