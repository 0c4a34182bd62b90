"""Identify the language of a text with py3langid's naive Bayes model, which is part of its wheel.

It was chosen by a test on 300 documents of each of six files of real English and Chinese, some of
it classical. From the first 500 or 2,000 characters it finds the language about as often as
fastText's lid.176: 97 to 100%, with the varieties below. For 500 characters it takes 0.4 to 0.8 ms
(lid.176: 0.2 to 0.3), for 2,000 characters 1.6 to 2.1 ms (lid.176: 0.5 to 1.1). It needs only
numpy, while fastText's model is CC BY-SA, and the package with that model in its wheel depends on a
downloader. Lingua took up to 19 ms; gcld3's last release is of 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from bc2.data.language_tags import normal_tag, primary
from bc2.errors import RecipeError, nearest

#: The language is identified from so many characters at the beginning of a text.
SAMPLE = 1000

#: Languages that a code of a recipe includes: the model has varieties of Chinese.
VARIETIES = {"zh": ("wuu", "yue")}


class Identified(NamedTuple):
    """The result of `identify`."""

    language: str
    """ISO 639 code of the most probable language."""
    allowed: float
    """The sum of the probabilities of the allowed languages, in [0, 1]."""


@cache
def _model() -> Any:
    """The model. Loading takes about 2 s and 100 MB, once in each process."""
    from py3langid.langid import (  # type: ignore[import-untyped]
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_languages(languages: Iterable[str]) -> None:
    """Check that the model knows some language codes.

    Raises:
        RecipeError: it does not know one; the error names the nearest code.
    """
    known = sorted(_model().labels)
    for language in languages:
        if normal_tag(language) not in known:
            # The model tells languages alone, no scripts and regions.
            guess = primary(language) if primary(language) in known else nearest(language, known)
            raise RecipeError(
                f"no language {language!r} can be identified",
                where="corpus.heuristics.languages",
                todo=f"did you mean {guess!r}?" if guess else f"known: {', '.join(known)}",
            )


def identify(text: str, allowed: Sequence[str]) -> Identified:
    """Identify the language of a text from its first `SAMPLE` characters.

    A text without letters is about equally improbable in every language.

    Args:
        allowed: ISO 639 codes; ``zh`` includes its `VARIETIES`.
    """
    # Line breaks are no evidence of the language, but documents with tables are full of them.
    ranked = _model().rank(" ".join(text[:SAMPLE].split()))
    codes = map(normal_tag, allowed)
    wanted = {each for code in codes for each in (code, *VARIETIES.get(code, ()))}
    return Identified(ranked[0][0], min(1.0, sum(p for code, p in ranked if code in wanted)))
