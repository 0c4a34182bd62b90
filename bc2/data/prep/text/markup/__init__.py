"""Markup in text: blocks that are not prose, spans that belong together, code without marks."""
