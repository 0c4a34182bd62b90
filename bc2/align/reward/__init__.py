"""Reward models (Baichuan 2 §3.2, Alignment report)."""
