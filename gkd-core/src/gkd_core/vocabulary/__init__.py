"""The vocabulary of a student that has only a part of its teacher's tokens."""
