"""Recall and precision of the search for personal data on made texts, and its speed on real text.

    python benchmarks/personal_data.py --count 1000 --corpus FILE.jsonl.gz

The made texts are those of `tests/data/prep/made/personal_sets.py`: of each kind and language as
many with personal data as without. Of the corpora, up to 20 MB of each are searched.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import typer

from bc2.data.prep.settings import PersonalKind
from bc2.data.prep.text.personal_data import PersonalData, find_personal

MADE = Path(__file__).parents[1] / "tests" / "data" / "prep" / "made"
KINDS: tuple[PersonalKind, ...] = get_args(PersonalKind)

#: The kinds of which made texts exist, and their languages.
MEASURED: tuple[PersonalKind, ...] = ("email", "phone", "id_card", "bank_card", "ssn", "ip")
LANGUAGES = ("en", "zh")

#: Characters that a piece may have besides what was planted, such as an opening bracket.
MORE = 2

app = typer.Typer(add_completion=False)


class Measured(NamedTuple):
    """How many planted pieces were found, and how many pieces were found wrongly."""

    planted: int
    right: int
    wrong: int

    @property
    def recall(self) -> float:
        return self.right / self.planted

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong)


def measured(
    kind: PersonalKind, language: str, count: int, seed: int, samples: Callable[..., Any]
) -> Measured:
    """Search `count` texts with personal data of a kind, and as many without any.

    A planted piece is found if one found piece holds it and little more; every other piece of the
    kind is wrong. All kinds are searched for at once, as the funnel does.
    """
    right = wrong = 0
    for sample in samples(kind, language, True, count, seed):
        found = _found(sample.text, kind)
        hits = [
            piece
            for piece in found
            if piece.start <= sample.start
            and piece.end >= sample.end
            and piece.end - piece.start <= sample.end - sample.start + MORE
        ]
        right += bool(hits)
        wrong += len(found) - bool(hits)
    for sample in samples(kind, language, False, count, seed):
        wrong += len(_found(sample.text, kind))
    return Measured(count, right, wrong)


def _found(text: str, kind: PersonalKind) -> list[PersonalData]:
    return [piece for piece in find_personal(text, KINDS) if piece.kind == kind]


def speed(path: Path, most: int = 20_000_000) -> tuple[float, Counter[str]]:
    """Megabytes a second over the beginning of a corpus, and what was found there."""
    texts: list[str] = []
    size = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size >= most:
                break
    find_personal("+1 212 664 7665", KINDS)  # loads the table of telephone numbers
    begun = time.process_time()
    found = Counter(piece.kind for text in texts for piece in find_personal(text, KINDS))
    return size / 1e6 / (time.process_time() - begun), Counter(found)


@app.command()
def main(
    count: Annotated[
        int, typer.Option(help="Texts of each kind and language, with and without")
    ] = 1000,
    seed: Annotated[int, typer.Option()] = 1,
    corpus: Annotated[list[Path] | None, typer.Option(help="JSON lines, gzip")] = None,
) -> None:
    """Print the tables."""
    sys.path.insert(0, str(MADE))
    from personal_sets import samples

    print("| kind | language | recall | precision | found of | wrongly |")
    for kind in MEASURED:
        for language in LANGUAGES:
            each = measured(kind, language, count, seed, samples)
            print(
                f"| {kind} | {language} | {each.recall:.1%} | {each.precision:.1%} "
                f"| {each.right} of {each.planted} | {each.wrong} |"
            )
    for path in corpus or []:
        rate, found = speed(path)
        print(f"{path.name}: {rate:.0f} MB/s, {dict(found)}")


if __name__ == "__main__":
    app()
