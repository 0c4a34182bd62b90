"""Benchmarks and held-out text: what a model scores, with its error and its record."""
