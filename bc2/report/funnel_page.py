"""The page of a corpus: its funnel in one HTML file, which loads nothing from anywhere."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import bc2
from bc2.data.prep.funnel import Against, Example, Funnel, Histogram
from bc2.data.prep.stages.decontamination.matches import BenchmarkMatch
from bc2.files import replace_durably
from bc2.report import timings as steps
from bc2.report.contamination import DECONTAMINATE, counts
from bc2.report.curves import inline_svg
from bc2.report.funnel_picture import figure, histogram
from bc2.report.funnel_rows import (
    PAPER,
    PAPER_KEPT,
    funnel_slices,
    language,
    removal_reasons,
    share,
    stage_rows,
)
from bc2.report.funnel_view import exact, lost_line, shelves
from bc2.report.number_format import amount, duration, moment
from bc2.report.timings import Timing
from bc2.report.visible_text import language_tag, size, visible

PAGE = "funnel.html"
#: Characters of a text that the page shows.
MOST_CHARACTERS = 1000
#: Matches with benchmarks that the page lists at most.
MOST_MATCHES = 200

#: The detail of an example of a match: the item's place, and both texts around what they share.
_MATCH = re.compile(r"(?P<name>.*?): “(?P<theirs>.*?)” \| “(?P<ours>.*)”", re.DOTALL)


class FunnelTile(NamedTuple):
    """One figure of the summary."""

    label: str
    value: str
    more: str = ""


def write(
    funnel: Funnel,
    out: Path,
    title: str,
    *,
    description: str = "",
    licences: Mapping[str, str] = {},
    matches: Iterable[BenchmarkMatch] = (),
    timings: Sequence[Timing] = (),
) -> Path:
    """Write the page to a file; an older one is replaced in one go. Arguments as `render`."""
    page = render(
        funnel, title, description=description, licences=licences, matches=matches,
        timings=timings,
    )  # fmt: skip
    replace_durably(out, page.encode())
    return out


def render(
    funnel: Funnel, title: str, *, description: str = "", licences: Mapping[str, str] = {},
    matches: Iterable[BenchmarkMatch] = (), timings: Sequence[Timing] = (),
) -> str:  # fmt: skip
    """The page as HTML.

    Args:
        title: name of the corpus.
        description: a sentence below the title.
        licences: by source, as they were recorded.
        matches: with benchmarks, of which the first are shown. A corpus of an older version has
            none, but examples of them.
        timings: how long the corpus took, by step.
    """
    from jinja2 import Environment, StrictUndefined

    # What stood in raw text is shown as text, whatever it looks like.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(exact=_exact, size=size, count=_count, seconds=duration)
    template = environment.from_string((files(__package__) / "funnel.html.j2").read_text("utf-8"))
    listed = [_listed(one) for one in islice(matches, MOST_MATCHES)]
    examples = [one for one in funnel.examples if one.stage == DECONTAMINATE and not listed]
    others = [one for one in funnel.examples if one.stage != DECONTAMINATE]
    return template.render(
        title=visible(title),
        description=visible(description),
        written=f"{moment(time.time())} UTC",
        version=bc2.__version__,
        tiles=list(_tiles(funnel)),
        picture=_picture(funnel),
        rows=stage_rows(funnel),
        paper=PAPER,
        paper_kept=PAPER_KEPT,
        timed=any(stage.seconds is not None for stage in funnel.stages),
        kept=funnel.kept,
        read=funnel.read,
        stages=[stage.name for stage in funnel.stages],
        slices=[
            ("source", funnel_slices(funnel, "source")),
            ("language", funnel_slices(funnel, "lang")),
        ],
        licences=licences,
        reasons=removal_reasons(funnel),
        lost=lost_line(funnel),
        rewritten=[stage for stage in funnel.stages if stage.rewritten],
        malformed=_malformed(funnel),
        lengths=_histograms(funnel.lengths, "length", "characters", log=True),
        scores=_histograms(funnel.scores, "score", "quality score", log=False),
        listed=listed,
        more_listed=max(0, counts(funnel)["pairs"] - len(listed)),
        matches=[_quoted(_match(one)) for one in examples[:MOST_MATCHES]],
        more_matches=max(0, len(examples) - MOST_MATCHES),
        steps=steps.lines(timings),
        step_heads=steps.COLUMNS,
        examples=list(_shelves(others)),
        facts=_facts(funnel),
        share=share,
        visible=visible,
    )


def _tiles(funnel: Funnel) -> Iterator[FunnelTile]:
    read, kept = funnel.read, funnel.kept
    yield FunnelTile("read", size(read.bytes), f"{amount(read.documents)} documents")
    yield FunnelTile("kept", size(kept.bytes), f"{amount(kept.documents)} documents")
    yield FunnelTile("kept of bytes", _exact(share(kept.bytes, read.bytes)))
    yield FunnelTile("kept of documents", _exact(share(kept.documents, read.documents)))
    yield FunnelTile("Baichuan 2 kept", _exact(PAPER_KEPT), "Figure 2 of the paper")
    seconds = [stage.seconds for stage in funnel.stages if stage.seconds is not None]
    if seconds:
        yield FunnelTile("work", duration(sum(seconds)), f"{len(seconds)} stages, all workers")


def _exact(part: float | None) -> str:
    return exact(part).strip()


def _count(value: int) -> str:
    return f"{value:,}"


def _picture(funnel: Funnel) -> Any:
    from markupsafe import Markup

    # Ours, made of numbers and of our stages' names: not escaped, as the histograms are not.
    return Markup(inline_svg(figure(funnel), "funnel"))


def _histograms(
    found: Mapping[str, Histogram], name: str, label: str, *, log: bool
) -> list[tuple[str, int, Any]]:
    """Language, documents, drawing."""
    from markupsafe import Markup

    return [
        (visible(language(lang)), sum(one.documents),
         Markup(inline_svg(histogram(one, label, log=log), f"{name}-{at}")))
        for at, (lang, one) in enumerate(found.items())
        if one.bins() and len(one.edges) > 1
    ]  # fmt: skip


def _malformed(funnel: Funnel) -> list[tuple[str, str, int, int]]:
    return [
        (visible(source), reason, one.documents, one.bytes)
        for source, found in funnel.malformed.items()
        for reason, one in found.items()
    ]


def _shelves(examples: Iterable[Example]) -> Iterator[tuple[str, str, list[tuple[str, Any]]]]:
    """(stage, reason, [(language, examples)]), in the order of stages."""
    found: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for (stage, reason, lang), mine in shelves(examples).items():
        quoted = [_quoted(one) for one in mine]
        found.setdefault((stage, reason), []).append((visible(lang), quoted))
    for (stage, reason), languages in found.items():
        yield stage, visible(reason), languages


def _match(one: Example) -> Example:
    """The example with both texts apart; as it is where its detail has no such form."""
    found = _MATCH.fullmatch(one.detail or "")
    if one.against is not None or found is None:
        return one
    against = Against(name=found["name"], text=found["theirs"])
    # What matched, and not how the document begins.
    changed = {"against": against, "text": found["ours"], "place": None, "detail": None}
    return one.model_copy(update=changed)


def _listed(one: BenchmarkMatch) -> dict[str, Any]:
    before, shared, after = map(visible, one.pieces())
    return {
        "document": visible(one.document),
        "benchmark": visible(f"{one.benchmark} {one.item}"),
        "found_by": visible(one.found_by),
        "done": visible(one.done),
        "lang": language_tag(one.lang),
        "before": before,
        "shared": shared,
        "after": after,
        "theirs": visible(one.benchmark_text, MOST_CHARACTERS),
    }


def _quoted(one: Example) -> dict[str, Any]:
    against = one.against
    before, marked, after = one.pieces()
    return {
        "source": visible(one.source),
        "origin": visible(one.origin),
        "lang": language_tag(one.lang),
        "detail": visible(one.detail or ""),
        "before": visible(before, MOST_CHARACTERS),
        "marked": visible(marked, MOST_CHARACTERS),
        "after": visible(after, MOST_CHARACTERS),
        "whole": one.whole,
        "against": against and visible(against.name),
        "against_text": against and visible(against.text, MOST_CHARACTERS),
    }


def _facts(funnel: Funnel) -> list[tuple[str, str]]:
    """Each stage's own facts as JSON, cut where they are long."""
    return [
        (stage.name, visible(json.dumps(stage.facts, ensure_ascii=False, indent=1), 20_000))
        for stage in funnel.stages
        if stage.facts
    ]
