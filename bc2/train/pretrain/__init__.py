"""Pretraining: the first algorithm that plugs into the run."""
