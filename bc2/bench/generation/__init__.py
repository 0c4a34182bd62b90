"""Measuring generation and scoring: speed, memory, and the parts of it, beside a peer's."""
