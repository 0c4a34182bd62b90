"""The families that transformers and vLLM know by themselves."""
