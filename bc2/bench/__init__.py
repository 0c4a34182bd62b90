"""Measuring training: speed, memory and the parts of a step, beside a peer's."""
