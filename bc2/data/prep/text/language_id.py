"""Identify the language of a text with py3langid's naive Bayes model, which its wheel holds.

Chosen on 300 documents of each of six files of real English and Chinese, classical too. By the
first 500 and 2,000 characters it finds the language about as often as fastText's lid.176 (97 to
100%, with the varieties below), in 0.4 to 0.8 and 1.6 to 2.1 ms against 0.2 to 0.3 and 0.5 to
1.1, and needs nothing but numpy: fastText's model is CC BY-SA, and the package that has it in its
wheel depends on a downloader. Lingua took up to 19 ms; gcld3's last release is of 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from bc2.errors import RecipeError, nearest

#: Characters, from the beginning, by which a text is judged.
SAMPLE = 1000

#: What the model tells apart and a recipe need not: varieties of Chinese.
VARIETIES = {"zh": ("wuu", "yue")}


class Identified(NamedTuple):
    """The most probable language, and the probability of those asked for."""

    language: str
    allowed: float


@cache
def _model() -> Any:
    """About 2 s and 100 MB, once a process."""
    from py3langid.langid import (  # type: ignore[import-untyped]
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_languages(languages: Iterable[str]) -> None:
    """Refuse codes that the model does not know.

    Raises:
        RecipeError: naming the code, and the nearest one.
    """
    known = sorted(_model().labels)
    for language in languages:
        if language not in known:
            guess = nearest(language, known)
            raise RecipeError(
                f"no language {language!r} can be identified",
                where="corpus.heuristics.languages",
                todo=f"did you mean {guess!r}?" if guess else f"known: {', '.join(known)}",
            )


def identify(text: str, allowed: Sequence[str]) -> Identified:
    """The language of a text by its first `SAMPLE` characters.

    Args:
        allowed: ISO 639 codes; ``zh`` stands for its `VARIETIES` too.

    Returns:
        The most probable language, and the sum of the probabilities of `allowed`, in [0, 1]. A
        text without letters is about equally improbable in every language.
    """
    # line breaks say nothing of the language, and much of documents that are tables
    ranked = _model().rank(" ".join(text[:SAMPLE].split()))
    wanted = {each for code in allowed for each in (code, *VARIETIES.get(code, ()))}
    return Identified(ranked[0][0], min(1.0, sum(p for code, p in ranked if code in wanted)))
