"""How many near-duplicates are found, by how near they are: measured beside theory.

Changes documents in random places until they have lost every share of their shingles from
none to half, in English and in Chinese, and looks which pairs share a band. Draws the curve,
and says how near some kinds of change leave a document:

    python benchmarks/near_recall.py --pairs 20000 --out near_recall.svg

With `--corpus FILE.jsonl.gz` (repeatable) the documents are real ones.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from bc2.data.prep.settings import NearSettings
from bc2.data.prep.text import minhash
from bc2.data.prep.text.word_hashes import text_slices, words_of

app = typer.Typer(add_completion=False)

#: Words of a document.
SHORTEST, LONGEST = 60, 400
#: Width of a point of the curve.
BIN = 0.025


def made_up(count: int, draw: random.Random) -> list[str]:
    """Documents in the form they are compared in: words with one space between."""
    english, chinese = [f"w{i}" for i in range(20_000)], [chr(0x4E00 + i) for i in range(4000)]
    return [
        " ".join(draw.choices(chinese if i % 2 else english, k=draw.randint(SHORTEST, LONGEST)))
        for i in range(count)
    ]


def real(paths: list[Path], count: int, draw: random.Random) -> list[str]:
    """Pieces of real documents, none twice, in the form they are compared in."""
    pieces: list[str] = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            texts = pa.chunked_array(
                [[json.loads(line)["text"] for line in stream]], pa.large_string()
            )
        for part in text_slices(texts):
            for document in words_of(part).to_pylist():
                words = document.split(" ")
                at = range(0, len(words) - LONGEST, LONGEST)
                pieces += [" ".join(words[i : i + draw.randint(SHORTEST, LONGEST)]) for i in at]
    return draw.sample(pieces, min(count, len(pieces)))


def changed(document: str, draw: random.Random) -> str:
    """Up to one word in 12 replaced, each of which is in five shingles."""
    words = document.split(" ")
    for at in draw.sample(range(len(words)), draw.randint(0, len(words) // 12)):
        words[at] = f"new{draw.randrange(10**6)}"
    return " ".join(words)


def similarity(one: list[str], two: list[str], shingle: int) -> np.ndarray:
    """[pairs] exact Jaccard similarity."""
    sides = [
        minhash.shingle_sets(pa.array(side, pa.large_string()), shingle) for side in (one, two)
    ]
    (values, ends), (others, other_ends) = sides
    shared = [
        minhash.overlap(values[ends[i] : ends[i + 1]], others[other_ends[i] : other_ends[i + 1]])
        for i in range(len(one))
    ]
    return np.array([share / united for share, united in shared])


def curve(pairs: int, corpus: list[Path], settings: NearSettings) -> dict[str, Any]:
    draw = random.Random(0)
    one = real(corpus, pairs, draw) if corpus else made_up(pairs, draw)
    two = [changed(document, draw) for document in one]
    bands, rows = minhash.bands_for(settings.threshold, settings.recall, settings.hashes)
    values = [
        minhash.band_values(
            minhash.signatures(pa.array(side, pa.large_string()), bands * rows, settings.shingle),
            bands,
            rows,
        )
        for side in (one, two)
    ]
    hit = (values[0] == values[1]).any(axis=1)
    near = similarity(one, two, settings.shingle)
    points = []
    for number in range(round(1 / BIN)):
        mine = (near >= number * BIN) & (near < (number + 1) * BIN)
        if mine.sum() >= 20:
            hoped = np.mean([minhash.recall_at(s, bands, rows) for s in near[mine]])
            points.append(
                (float(near[mine].mean()), int(mine.sum()), float(hit[mine].mean()), hoped)
            )
    return {"bands": bands, "rows": rows, "pairs": len(one), "points": points}


def kinds(settings: NearSettings) -> dict[str, float]:
    """How near a change leaves a document of 400 words in 20 sentences."""
    draw = random.Random(1)
    sentences = [" ".join(f"w{draw.randrange(5000)}" for _ in range(20)) for _ in range(20)]
    text = ". ".join(sentences)
    paragraph = " ".join(f"p{i}" for i in range(40))
    found = {
        "spaces, case and punctuation": text.upper().replace(". ", " \n- "),
        "one word of 400 replaced": text.replace(text.split(" ")[100], "new", 1),
        "a sentence of 20 moved": ". ".join(sentences[1:10] + sentences[:1] + sentences[10:]),
        "a sentence of 20 left out": ". ".join(sentences[1:]),
        "a paragraph of 40 words put in": ". ".join([*sentences[:9], paragraph, *sentences[9:]]),
    }
    for share in (100, 50, 20):
        words = text.split(" ")
        for at in range(7, len(words), share):
            words[at] = f"new{at}"
        found[f"one word in {share} replaced"] = " ".join(words)
    texts = words_of(pa.array([text, *found.values()], pa.large_string())).to_pylist()
    near = similarity([texts[0]] * len(found), texts[1:], settings.shingle)
    return dict(zip(found, near.tolist(), strict=True))


def picture(found: dict[str, Any], settings: NearSettings, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bands, rows = found["bands"], found["rows"]
    near, counts, hit, _ = (np.array(column) for column in zip(*found["points"], strict=True))
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    line = np.linspace(0.3, 1, 200)
    axes.plot(line, [minhash.recall_at(s, bands, rows) for s in line], label="1 − (1 − s^r)^b")
    spread = 2 * np.sqrt(np.maximum(hit * (1 - hit), 1e-9) / counts)
    axes.errorbar(near, hit, spread, fmt="o", ms=3, lw=1, label="measured, ± 2 standard errors")
    axes.axvline(settings.threshold, ls=":", color="grey", label="threshold")
    axes.set(xlabel="Jaccard similarity", ylabel="share of pairs found", xlim=(0.3, 1.01))
    axes.set_title(f"{found['pairs']:,} pairs, {bands} bands of {rows} hashes")
    axes.legend(loc="lower right")
    figure.savefig(out)


@app.command()
def main(
    pairs: Annotated[int, typer.Option(help="Pairs of documents.")] = 20_000,
    corpus: Annotated[list[Path] | None, typer.Option(help="JSONL of real documents.")] = None,
    out: Annotated[Path, typer.Option(help="Picture, .svg or .png.")] = Path("near_recall.svg"),
) -> None:
    settings = NearSettings()
    found = curve(pairs, corpus or [], settings)
    print(f"{found['pairs']:,} pairs, {found['bands']} bands of {found['rows']} hashes")
    print(f"{'Jaccard':>8} {'pairs':>7} {'found':>8} {'theory':>8}")
    for near, count, hit, hoped in found["points"]:
        print(f"{near:8.3f} {count:7,} {hit:8.2%} {hoped:8.2%}")
    for kind, value in kinds(settings).items():
        print(f"{value:8.3f} {kind}")
    picture(found, settings, out)
    print(f"picture: {out}")


if __name__ == "__main__":
    app()
