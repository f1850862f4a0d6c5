"""What a step minimises: passes, terms, several teachers, conflicts."""
