"""What a stated language means: one rule for every stage.

A tag is compared in lower case, with hyphens for underscores, by its beginning: ``zh`` names
``zh``, ``zh-CN`` and ``zh_Hans``; ``zh-CN`` names ``ZH-cn`` and not ``zh``; ``code`` names
``code-python``. Tags are those of BCP 47, and ``code`` for source code; text without a tag is
``unknown``, and so is ``und``.
"""

from __future__ import annotations

from collections.abc import Iterable

#: What settings call text of no stated language.
UNKNOWN = "unknown"

CODE = "code"

#: What BCP 47 calls it.
UNDETERMINED = "und"


def normal_tag(lang: str | None) -> str:
    """A tag as it is compared; `UNKNOWN` for none."""
    tag = (lang or "").strip().replace("_", "-").lower()
    return UNKNOWN if tag in ("", UNDETERMINED) else tag


def names(key: str, lang: str | None) -> bool:
    """Whether a key of the settings names a stated language."""
    tag, wanted = normal_tag(lang), normal_tag(key)
    return tag == wanted or tag.startswith(f"{wanted}-")


def named_by(keys: Iterable[str], lang: str | None) -> bool:
    """Whether any of some keys names a stated language."""
    return any(names(key, lang) for key in keys)


def most_specific(keys: Iterable[str], lang: str | None) -> str | None:
    """The longest of the keys that name a stated language; None if none does."""
    return max((key for key in keys if names(key, lang)), key=len, default=None)


def is_code(lang: str | None) -> bool:
    """Whether a text is source code, in which markup, numbers and sentences mean nothing."""
    return names(CODE, lang)


def primary(lang: str | None) -> str:
    """The language without script, region or dialect: ``zh`` of ``zh-Hant-TW``."""
    return normal_tag(lang).split("-")[0]
