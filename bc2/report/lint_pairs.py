"""What only pairs have, as lines and tables of a lint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.align.lint.pair_report import LengthBias, PairFigures
from bc2.report.visible_text import visible

#: Column names, lines, and a title.
NamedTable = tuple[Sequence[str], Sequence[Sequence[object]], str]

_BIAS = ("pairs", "number", "prompts", "as long", "longer wins", "95%")


def pair_figures(figures: PairFigures) -> Iterator[tuple[str, str]]:
    """Names and values, as text."""
    prompts = ", ".join(f"{split} {count:,}" for split, count in figures.prompts.items())
    answers = ", ".join(f"{split} {count:,}" for split, count in figures.answers.items())
    yield "prompts", f"{sum(figures.prompts.values()):,} ({prompts})"
    yield "answers", f"{sum(figures.answers.values()):,} ({answers})"
    spread = ", ".join(f"{name} {value:,.4g}" for name, value in figures.pairs_per_prompt.items())
    yield "pairs a prompt", spread
    for one in figures.scores:
        span = f"{one.lowest:g} to {one.highest:g}, mean {one.mean:.4g}, {one.distinct:,} values"
        yield f"scores of {visible(one.source)}", span
    if figures.evaluation_prompts:
        total = sum(figures.prompts.values())
        for name, count in figures.evaluation_prompts.items():
            yield f"prompts of {name}", f"{count:,} of {total:,} prompts have words of {name}"


def pair_tables(figures: PairFigures | None) -> list[NamedTable]:
    """Length bias, scores, and what cutting would do; none of conversations."""
    if figures is None:
        return []
    tables: list[NamedTable] = [
        (_BIAS, [_bias(one) for one in figures.length_bias], "Length: how often the longer wins")
    ]
    for one in figures.scores:
        name = visible(one.source)
        lines = [(f"{low:.4g} to {high:.4g}", count) for low, high, count in one.histogram]
        tables.append((("score", "answers"), lines, f"Scores of {name}"))
        gaps = [_bias(gap) for gap in one.gaps]
        tables.append((_BIAS, gaps, f"Pairs of {name} by how far their scores are apart"))
    if figures.cut:
        cut = [(one.tokens, one.cut, one.identical) for one in figures.cut]
        columns = ("tokens", "pairs that it cuts", "then identical: ln 2, no gradient")
        tables.append((columns, cut, "In a program that cuts answers (bc2 does not)"))
    return tables


def _bias(one: LengthBias) -> tuple[object, ...]:
    interval = "" if one.interval is None else "{:.1%} to {:.1%}".format(*one.interval)
    share = f"{one.longer_wins:.1%}"
    return visible(one.group), one.pairs, one.prompts, one.ties, share, interval
