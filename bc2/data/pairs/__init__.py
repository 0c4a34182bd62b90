"""Comparisons of answers: read from their usual forms, split by prompt, written as pairs."""
