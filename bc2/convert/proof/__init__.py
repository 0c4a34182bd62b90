"""The proof that what was written computes what the checkpoint does."""
