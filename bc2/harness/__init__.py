"""Benchmarks: the files they are released as, and lm-eval's tasks over them."""
