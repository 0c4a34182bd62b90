"""Versions of what this room makes: part of each stage's key, and recorded in the payload."""

#: Raised when the same input and settings give another corpus. A filter has a version of its own.
CORPUS = 2

#: Raised when the same corpus and tokenizer give other shards.
TOKENS = 1

#: Raised when the same files and settings give other chats.
CHATS = 1
