"""Judging a model: prompts of benchmarks, and the likelihood of texts."""
