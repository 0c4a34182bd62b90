"""The text of a proof: of the model's own corpus where it is registered, and of bc2's pages."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from made_export import Held

from bc2.convert.proof.real_texts import proof_texts
from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.prep.prepare import prepare
from bc2.registry import Artifact, Draft, Registry

TEXTS = [f"Document {n} of the corpus, the like of which is nowhere else." for n in range(300)]


def registered(folder: Path) -> tuple[Artifact, Artifact]:
    """A home with a corpus, and a checkpoint that comes from it by way of tokens."""
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    source = SourceConfig(path=str(folder / "texts.jsonl"), name="texts", lang="en")
    registry = Registry.open(folder / "home")
    with registry.stage(Draft("corpus", "texts", "0" * 64)) as staged:
        prepare(CorpusConfig(sources=(source,), heldout_fraction=0.1), staged.path / "made")
        for path in (staged.path / "made").iterdir():
            path.rename(staged.path / path.name)
        (staged.path / "made").rmdir()
        corpus = staged.publish()
    with registry.stage(Draft("tokens", "texts", "1" * 64, (corpus.digest,))) as staged:
        (staged.path / "a").write_bytes(b"a")
        tokens = staged.publish()
    draft = Draft("checkpoint", "m", "2" * 64, (tokens.digest,), role="base")
    with registry.stage(draft) as staged:
        (staged.path / "a").write_bytes(b"a")
        return corpus, staged.publish()


def test_a_models_own_corpus(tmp_path: Path) -> None:
    corpus, checkpoint = registered(tmp_path)
    found = proof_texts(checkpoint, None)
    assert found.title == "corpus/texts and bc2's own pages"
    own = [text for text in found.texts if text in TEXTS]
    assert len(own) == 200
    assert len(set(own)) == 200
    # Those held out come first.
    heldout = json.loads((corpus.path / "corpus.json").read_text())["sources"][0]["heldout"]
    held = sum(part["documents"] for part in heldout["parts"])
    assert held > 10
    again = proof_texts(checkpoint, None)
    assert (again.texts, again.digest) == (found.texts, found.digest)
    # Of a corpus that is gone nothing is taken, and of one that is damaged neither.
    for part in corpus.path.rglob("*.parquet"):
        part.write_bytes(b"damaged")
    assert proof_texts(checkpoint, None).title == "bc2's own pages"


def test_bc2s_own_pages(held: Callable[[str], Held]) -> None:
    found = proof_texts(held("llama3").source.artifact, None)
    assert found.title == "bc2's own pages"
    assert all(found.texts)
    text = "".join(found.texts)
    assert len(text) > 50_000
    for part in ("\u6e21\u8239", "The ferry", "def softmax", "import"):
        assert part in text


def test_a_file_that_a_person_names(tmp_path: Path, held: Callable[[str], Held]) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("One paragraph\nof two lines.\n\n\n\n另一段。", encoding="utf-8")
    found = proof_texts(held("llama3").source.artifact, path)
    assert found.title == "mine.txt"
    assert found.texts == ("One paragraph\nof two lines.", "另一段。")


@pytest.mark.parametrize("name", ["zh", "en", "code"])
def test_pages_come_with_the_package(name: str) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())
    assert "texts/*.txt" in project["tool"]["setuptools"]["package-data"]["bc2.convert.proof"]
    assert (Path("bc2/convert/proof/texts") / f"{name}.txt").stat().st_size > 1000
