"""The inference engine: text and scores for many requests, in batches over a paged cache."""
