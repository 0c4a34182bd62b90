"""Text in, batches out: sources, the corpus, token shards, the mixture and the loader."""
