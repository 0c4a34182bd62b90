"""Languages as parts of strata's names and as keys of weights, held against the sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from bc2.data.corpus_config import SourceConfig
from bc2.data.language_tags import UNDETERMINED, UNKNOWN, names, normal_tag
from bc2.data.readers import source_language
from bc2.errors import DataError, RecipeError, nearest

#: The most characters of a source's name and language: a directory's name has 255 at most, and
#: topic and quality are named behind them.
_LONGEST_STRATUM = 240

#: A language that can be part of a stratum's name, which is the name of a directory.
_TAG = re.compile(r"[a-z0-9-]+")


def stratum_language(lang: str | None) -> str:
    """A stated language as it is named in strata; ``und`` for none.

    Raises:
        DataError: it cannot be part of the name of a directory.
    """
    name = normal_tag(lang)
    if not _TAG.fullmatch(name):
        raise DataError(
            f"the language {lang!r} cannot be part of a name",
            where="corpus.sources",
            todo="give the source a lang of letters, digits and hyphens",
        )
    return UNDETERMINED if name == UNKNOWN else name


def check_language_keys(
    sources: Sequence[SourceConfig], tables: Mapping[str, Iterable[str]]
) -> None:
    """Check weights by language before a corpus is made.

    Args:
        tables: the keys of each table of weights, by its name in [corpus.weights].

    Raises:
        RecipeError: a key names no language of the sources, two keys are one language, or a
            language cannot be part of a stratum's name.
    """
    languages = _stratum_languages(sources)
    for table, keys in tables.items():
        known: dict[str, str] = {}
        for key in keys:
            if not any(names(key, language) for language in languages):
                raise _unstated(key, table, languages)
            other = known.setdefault(normal_tag(key), key)
            if other != key:
                raise RecipeError(
                    f"{other!r} and {key!r} are one language",
                    where=f"corpus.weights.{table}",
                    todo="leave one of them out",
                )


def _stratum_languages(sources: Sequence[SourceConfig]) -> list[str]:
    try:
        stated = [(one.name, stratum_language(source_language(one))) for one in sources]
    except DataError as error:
        raise RecipeError(error.what, where=error.where, todo=error.todo) from None
    longest = max(len(f"{name}.{language}") for name, language in stated)
    if longest > _LONGEST_STRATUM:
        raise RecipeError(
            f"name and language of a source have {longest:,} characters, and name directories",
            where="corpus.sources",
            todo=f"use at most {_LONGEST_STRATUM} for both, or weight by other properties",
        )
    return sorted({language for _, language in stated})


def _unstated(key: str, table: str, languages: Sequence[str]) -> RecipeError:
    guess = nearest(normal_tag(key), languages)
    return RecipeError(
        f"a weight for a language that no source states: {key!r}",
        where=f"corpus.weights.{table}",
        todo=f"did you mean {guess!r}?" if guess else f"they state {', '.join(languages)}",
    )
