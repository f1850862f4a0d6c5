"""The deployment of a student: export, verification, its card and lineage, and what it costs."""
