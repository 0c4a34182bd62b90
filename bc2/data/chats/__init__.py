"""Conversations to fine-tune on: read from files of any usual form, kept as one artifact."""
