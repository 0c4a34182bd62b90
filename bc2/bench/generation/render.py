"""Results of `bc2 bench generate` as tables: on a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.bench.generation.results import DecodeResult, GenerationResult
from bc2.bench.render import Table, lasting, markdown_tables, ratio_limits, unlike
from bc2.bench.results import Spread


def generation_tables(result: GenerationResult) -> list[Table]:
    """What a person reads of a result: a table for each part that was measured."""
    made = [
        _decode(result), _first_token(result), _ratios(result), _prefix(result),
        _shares(result), _family(result), _failed(result),
    ]  # fmt: skip
    return [each for each in made if each.rows]


def generation_markdown(result: GenerationResult) -> str:
    """A result as a Markdown page."""
    return markdown_tables(
        f"bc2 bench generate: {result.id}",
        list(generation_setup(result)),
        generation_tables(result),
    )


def generation_setup(result: GenerationResult) -> Iterator[str]:
    """What was measured, when, and on which machine: a line each."""
    machine, settings, work = result.machine, result.settings, result.work
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    yield (
        f"{result.params:,} parameters on {settings['device']}; {settings['rounds']} rounds, "
        f"{result.time}"
    )
    if result.decode:
        yield (
            f"{work['requests']} prompts of {work['prompt_tokens']:,} tokens, answers of "
            f"{work['answer_tokens']:,}"
        )
    if result.prefix:
        yield (
            f"{work['score_requests']} texts of {work['score_tokens']:,} tokens to score, with "
            f"{work['shots']} examples each"
        )
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f} at the start; "
        f"{machine['device']}; {packages}"
    )


def _decode(result: GenerationResult) -> Table:
    tokens = result.work["answer_tokens"]
    columns = [
        "contender", "together", "tokens/s", "lowest to highest", "seconds", "MB taken",
        "answers as bc2's",
    ]  # fmt: skip
    rows = []
    for found in _ran(result):
        speed = found.tokens_per_s(tokens)
        same = found.same_answers
        rows.append(
            [
                found.name, str(found.size or ""), f"{speed.median:,.0f}",
                f"{speed.low:,.0f} to {speed.high:,.0f}", f"{found.seconds.median:.1f}",
                f"{found.memory.taken / 1e6:,.0f}" if found.memory else "",
                "" if same is None else f"{same:.0%}",
            ]
        )  # fmt: skip
    return Table("Decoding", columns, rows)


def _first_token(result: GenerationResult) -> Table:
    rows = [
        [
            found.name,
            f"{Spread.of([each.first_median_s for each in found.rounds]).median:.2f}",
            f"{Spread.of([each.first_p95_s for each in found.rounds]).median:.2f}",
        ]
        for found in _ran(result)
    ]
    return Table(
        "Seconds to the first token, all prompts given at once",
        ["contender", "median", "95%"],
        rows,
    )


def _ran(result: GenerationResult) -> list[DecodeResult]:
    return [found for found in result.decode if not found.failed]


def _ratios(result: GenerationResult) -> Table:
    rows = [
        [ratio.ours, ratio.peer, *_times(ratio.spread)]
        for ratio in result.ratios
    ]  # fmt: skip
    columns = ["ours", "against", "times as fast", ratio_limits(result.ratios)]
    return Table("Against each other", columns, rows)


def _times(spread: Spread) -> list[str]:
    return [f"{spread.median:.2f}", f"{spread.low:.2f} to {spread.high:.2f}"]


def _prefix(result: GenerationResult) -> Table:
    rows = [
        [
            found.precision,
            f"{found.requests / Spread.of(found.shared_s).median:.1f}",
            f"{found.requests / Spread.of(found.apart_s).median:.1f}",
            *_times(found.times_as_fast),
            f"{found.shared_tokens:,}", f"{found.apart_tokens:,}", f"{found.difference:.1e}",
        ]
        for found in result.prefix
    ]  # fmt: skip
    columns = [
        "precision", "texts/s, shared", "texts/s, apart", "times as fast",
        "lowest to highest round", "tokens computed, shared", "apart", "difference, nats a text",
    ]  # fmt: skip
    return Table("Scoring with shared beginnings", columns, rows)


def _shares(result: GenerationResult) -> Table:
    rows = []
    for part, shares in (("sampling", result.sampling), ("settling", result.settle)):
        for found in shares:
            share = found.share
            events = f" ({found.events:,} times)" if found.events else ""
            rows.append(
                [
                    f"{part}: {found.what}{events}", found.precision, f"{share.median:.1%}",
                    f"{share.low:.1%} to {share.high:.1%}",
                    f"{Spread.of(found.seconds).median / found.steps * 1e3:.1f}",
                ]
            )  # fmt: skip
    columns = ["part of the time", "precision", "share", "lowest to highest round", "ms a step"]
    return Table("Choosing tokens", columns, rows)


def _family(result: GenerationResult) -> Table:
    rows = [
        [
            found.precision, str(found.n), f"{found.prompt:,}", f"{found.prompt_tokens:,}",
            f"{Spread.of(found.one_s).median:.2f}", f"{Spread.of(found.all_s).median:.2f}",
            *_times(found.times_as_long),
        ]
        for found in result.n
    ]  # fmt: skip
    columns = [
        "precision", "continuations", "prompt", "prompt tokens computed", "seconds for one",
        "for all", "times as long", "lowest to highest round",
    ]  # fmt: skip
    return Table("Several continuations of one prompt", columns, rows)


def _failed(result: GenerationResult) -> Table:
    rows = [[found.name, found.failed] for found in result.decode if found.failed]
    rows += [[part, reason] for part, reason in result.failed.items()]
    return Table("Not measured", ["what", "why"], rows)


def generation_listing(results: Sequence[GenerationResult]) -> Table:
    """One line for each kept result."""
    rows = []
    for result in results:
        ours = next((found for found in _ran(result) if found.kind == "bc2"), None)
        speed = f"{ours.tokens_per_s(result.work['answer_tokens']).median:,.0f}" if ours else ""
        least = min(result.ratios, key=lambda ratio: ratio.spread.median, default=None)
        rows.append(
            [
                result.id, result.time, speed,
                f"{least.spread.median:.2f}" if least else "", least.peer if least else "",
            ]
        )  # fmt: skip
    return Table("", ["result", "time (UTC)", "tokens/s", "least ratio", "to peer"], rows)


def generation_comparison(first: GenerationResult, second: GenerationResult) -> Table:
    """Two results side by side, for the figures that both have."""
    theirs = dict(_figures(second))
    rows = [
        [name, f"{value:,.4g}", f"{theirs[name]:,.4g}", f"{theirs[name] / value:.3f}"]
        for name, value in _figures(first)
        if name in theirs and value
    ]
    columns = ["figure", "first", "second", "second / first"]
    return Table(f"{first.id} and {second.id}", columns, rows)


def _figures(result: GenerationResult) -> Iterator[tuple[str, float]]:
    """Every figure of a result by its name."""
    for found in _ran(result):
        speed = found.tokens_per_s(result.work["answer_tokens"])
        yield f"{found.name}, tokens/s", speed.median
        if found.memory is not None:
            yield f"{found.name}, MB taken", found.memory.taken / 1e6
    for ratio in result.ratios:
        yield f"{ratio.ours} over {ratio.peer}", ratio.spread.median
    for prefix in result.prefix:
        yield f"prefix {prefix.precision}, times as fast", prefix.times_as_fast.median
    for part, shares in (("sampling", result.sampling), ("settling", result.settle)):
        for share in shares:
            yield f"{part}: {share.what} {share.precision}, share", share.share.median
    for family in result.n:
        yield f"n={family.n} {family.precision}, times as long", family.times_as_long.median


def generation_differences(first: GenerationResult, second: GenerationResult) -> Iterator[str]:
    """What makes two results no measure of the same thing, a line each."""
    return unlike(
        ("recipe", first.recipe, second.recipe),
        ("machine", lasting(first.machine), lasting(second.machine)),
        ("settings", first.settings, second.settings),
        ("work", first.work, second.work),
    )
