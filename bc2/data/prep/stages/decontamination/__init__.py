"""Texts of benchmarks, and the index that finds them in documents."""
