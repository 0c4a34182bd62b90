"""Choosing tokens from logits, each sequence by its own settings."""
