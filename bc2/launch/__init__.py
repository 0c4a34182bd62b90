"""The ranks of a run: how they are asked for, started, watched, and what became of them."""
