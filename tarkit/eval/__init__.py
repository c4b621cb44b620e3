"""Evaluations: `tarkit eval shapes` and its like, one module each."""
