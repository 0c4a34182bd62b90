"""Scaling laws: a ladder of small runs, the law fitted to them, what it predicts and decides."""
