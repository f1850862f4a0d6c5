"""Measures that matter where a student is deployed."""
