"""Secret keys, in the forms that their issuers chose so that they can be recognised."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Each pattern begins with fixed letters, which `re` finds fast. Text between the lines of a PEM
#: file has no two hyphens together, so a search ends where the next header begins.
_KEYS = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        r"-----BEGIN (?>[A-Z]{1,16} ){0,3}?PRIVATE KEY-----(?:[A-Za-z0-9+/=\s:,\\]|-(?!-)){64,}+"
        r"-----END (?>[A-Z]{1,16} ){0,3}?PRIVATE KEY-----",
        r"AKIA[0-9A-Z]{16}(?!\w)",  # Amazon
        r"ASIA[0-9A-Z]{16}(?!\w)",
        r"gh[pousr]_[A-Za-z0-9]{36,}+",  # GitHub
        r"github_pat_\w{50,}+",
        r"glpat-[\w-]{20,}+",  # GitLab
        r"xox[abprs]-[A-Za-z0-9-]{20,}+",  # Slack
        r"AIza[\w-]{35}(?![\w-])",  # Google
        r"sk-(?:proj-|ant-)?[\w-]{32,}+",  # OpenAI, Anthropic
        r"hf_[A-Za-z]{34}(?!\w)",  # Hugging Face
    )
)


def keys(text: str) -> Iterator[tuple[int, int]]:
    """Places of secret keys."""
    for pattern in _KEYS:
        for match in pattern.finditer(text):
            before = text[max(0, match.start() - 1) : match.start()]
            # a key does not begin inside a word
            if not (before.isascii() and (before.isalnum() or before == "_")):
                yield match.span()
