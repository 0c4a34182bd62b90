"""Text from a model: sampling, the key-value cache, streaming."""
