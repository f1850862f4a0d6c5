"""The objective of a step: passes, terms, teacher ensembles and conflicts."""
