"""Supervised fine-tuning: a model learns the answers of conversations (Baichuan 2 §3.1)."""
