"""Verbs that make training data: pictures in, rows of text and codes out."""
