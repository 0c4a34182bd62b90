"""Generate text with a model: sampling, batches with a key-value cache, streaming."""
