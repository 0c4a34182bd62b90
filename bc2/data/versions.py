"""Versions of what this room makes: part of each stage's key, and recorded in the payload."""

#: Raised when the same input and settings give another corpus. A filter has a version of its own.
CORPUS = 2

#: Raised when rows are read that were skipped as malformed, or the other way round: part of the
#: keys of what skips such rows.
MALFORMED_ROWS = 2

#: Raised when the same corpus and tokenizer give other shards.
TOKENS = 1

#: Raised when the same files and settings give other chats.
CHATS = 1

#: Raised when the same files and settings give other pairs.
PAIRS = 1


def of_malformed(malformed: str) -> dict[str, int]:
    """What the setting `malformed` adds to a key: "stop" gives no result that may differ."""
    return {"malformed_rows": MALFORMED_ROWS} if malformed == "skip" else {}
