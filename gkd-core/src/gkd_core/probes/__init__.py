"""Distances between features of student and teachers, measured while a stage trains."""
