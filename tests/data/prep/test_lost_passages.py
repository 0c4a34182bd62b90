"""What `passages` cut and later stages removed the last copy of, against a search of the texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep.funnel import Funnel
from bc2.data.prep.prepare import PrepOptions, prepare
from bc2.data.prep.text.sentences import split_paragraphs, split_sentences

TEXT = """river mountain village winter harvest market letter captain garden evening story teacher
window journey morning history island forest kitchen question answer bridge music paper"""
PASSAGES = {"paragraph_bytes": 20, "sentence_bytes": 20, "sentence_repeats": 2, "min_left": 1,
            "max_lost": 1.0}  # fmt: skip

Lost = dict[str, int]
Left = dict[int, str]


def sentence(number: int) -> str:
    return f"No {number}x: {' '.join(random.Random(number).choices(TEXT.split(), k=9))}."


@st.composite
def corpora(draw: st.DrawFn) -> list[str]:
    """Documents of common and own sentences, near copies, and texts that later stages remove."""
    common = st.integers(0, 7).map(sentence)
    paragraph = st.lists(common, min_size=1, max_size=3).map(" ".join)
    made: list[str] = []
    for number in range(draw(st.integers(2, 9))):
        parts = draw(st.lists(paragraph, min_size=1, max_size=4))
        parts.insert(draw(st.integers(0, len(parts))), sentence(100 + number))
        near = draw(st.sampled_from([None, None, *range(len(made))]))
        if near is not None:
            parts.append(f"{sentence(100 + near)} {sentence(200 + near)}")
        parts += draw(st.sampled_from([[], [], ["A dropword here."], [sentence(99)]]))
        made.append("\n\n".join(parts))
    return made


def form(text: str) -> str:
    return " ".join(text.split()).casefold()


def expected(texts: list[str], left: dict[int, str], split: Any) -> Lost:
    """The number of pieces that a document that stays lost and that no text has; their bytes.

    Every piece but the first of its form is cut, for every document has a sentence of its own.
    Bytes are without the blank line that may follow a piece.
    """
    standing = {form(piece) for text in left.values() for piece in split(text)}
    seen: set[str] = set()
    lost: dict[str, int] = {}
    for number, text in enumerate(texts):
        for piece in split(text):
            if form(piece) in seen and number in left and form(piece) not in standing:
                lost.setdefault(form(piece), len(piece.rstrip().encode()))
            seen.add(form(piece))
    return {"passages": len(lost), "bytes": sum(lost.values())}


def run(texts: list[str], folder: Path, options: PrepOptions, **tables: Any) -> tuple[Lost, Left]:
    """What the funnel counts, and the documents that are left, by their index among `texts`."""
    folder.mkdir(parents=True, exist_ok=True)
    for half, rows in (("a", texts[: len(texts) // 2]), ("b", texts[len(texts) // 2 :])):
        lines = [json.dumps({"text": text}) for text in rows]
        (folder / f"{half}.jsonl").write_text("\n".join(lines))
    config = {"sources": [{"name": "s", "path": str(folder / "*.jsonl")}], "heldout_fraction": 0.0}
    config |= tables
    prepare(CorpusConfig.model_validate_json(json.dumps(config)), folder / "out", options=options)
    (stage,) = (s for s in Funnel.open(folder / "out/funnel.json").stages if s.name == "passages")
    left, half = {}, len(texts) // 2
    for file in sorted((folder / "out" / "train").rglob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            first = 0 if row["origin_file"].endswith("a.jsonl") else half
            left[first + row["origin_row"] - 1] = row["text"]
    return stage.facts["lost_with_holder"], left


DROPS: list[dict[str, Any]] = [
    {},
    {"near": {"threshold": 0.5}},
    {"safety": {"patterns": {"word": "dropword"}}},
    {"near": {"threshold": 0.5}, "safety": {"patterns": {"word": "dropword"}}},
]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=corpora(),
    later=st.sampled_from(DROPS),
    action=st.sampled_from([None, "drop", "cut"]),
    kinds=st.sampled_from(["paragraphs", "sentences", "both"]),
)
def test_what_is_lost_is_counted_as_a_search_of_all_texts_counts_it(
    texts: list[str], later: dict[str, Any], action: str | None, kinds: str, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("lost")
    if action is not None:
        (folder / "bench.jsonl").write_text(json.dumps({"question": sentence(99)}))
        benchmark = {"name": "b", "path": str(folder / "bench.jsonl"), "fields": ["question"]}
        later = later | {"decontaminate": {"benchmarks": [benchmark], "action": action}}
    texts = list(dict.fromkeys([*texts, "This one always stays, so that something is left."]))
    on = {name: kinds in (name, "both") for name in ("paragraphs", "sentences")}
    counted, left = run(
        texts, folder / "raw", PrepOptions(workers=1), passages=PASSAGES | on, **later
    )
    if kinds == "both":
        # A paragraph may stand sentence by sentence, so here only all and nothing compare.
        searched = expected(texts, left, split_sentences)
        assert counted["passages"] or not searched["passages"]
        assert counted["bytes"] >= searched["bytes"]
    else:
        split = split_paragraphs if kinds == "paragraphs" else split_sentences
        searched = expected(texts, left, split)
        assert counted["passages"] == searched["passages"]
        assert 0 <= counted["bytes"] - searched["bytes"] <= 2 * counted["passages"]
    if not later:
        assert counted == {"passages": 0, "bytes": 0}


def test_a_first_copy_that_goes_as_a_near_duplicate_is_said(tmp_path, capsys):
    """C, A, B: the paragraph is cut from B for C holds it, and C goes for A."""
    own = [" ".join(sentence(10 * k + i) for i in range(8)) for k in (1, 2)]
    shared = " ".join(sentence(80 + i) for i in range(3))
    texts = [f"{own[0]}\n\n{shared}", f"{own[0]} {sentence(70)}", f"{own[1]}\n\n{shared}"]
    texts[1] += f" {sentence(71)} {sentence(72)} {sentence(73)}"
    passages = PASSAGES | {"sentences": False}
    lost, left = run(texts, tmp_path / "near", PrepOptions(workers=1), passages=passages,
                     near={"threshold": 0.5})  # fmt: skip
    assert sorted(left) == [1, 2]
    assert left[2] == f"{own[1]}\n\n"
    assert lost == {"passages": 1, "bytes": len(shared.encode())}
    said = capsys.readouterr().err
    size = len(shared.encode())
    assert f"warning: corpus.passages: passages lost with their first copy: 1 ({size} b" in said
    lost, left = run(texts, tmp_path / "all", PrepOptions(workers=1), passages=passages)
    assert (lost["passages"], len(left), capsys.readouterr().err) == (0, 3, "")


def test_the_count_does_not_depend_on_parts(tmp_path):
    draw = random.Random(9)
    texts = [
        "\n\n".join(" ".join(sentence(draw.randrange(30)) for _ in range(3)) for _ in range(3))
        + f"\n\n{sentence(100 + number)}{' dropword' * (number % 4 == 0)}"
        for number in range(40)
    ]
    later = DROPS[3] | {"passages": PASSAGES}
    one, _ = run(texts, tmp_path / "one", PrepOptions(workers=1), **later)
    many, _ = run(texts, tmp_path / "many", PrepOptions(workers=1, part_bytes=2000), **later)
    assert one == many
    assert one["passages"] > 3
