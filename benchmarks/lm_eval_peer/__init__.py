"""lm-eval's own `hf` model with bc2's weights and tokenizer: what `bc2 eval` is held against.

Nothing here uses bc2's evaluation: prompts, scoring, generation, stop texts, cuts and filters are
lm-eval's. Only the weights (in transformers' Llama), the tokenizer and the rows are given to it.
"""
