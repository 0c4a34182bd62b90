"""Checkpoints of ours, as other tools read them."""
