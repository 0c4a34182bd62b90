"""A real model merged with its continuation, which lowers what the continuation loses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stories260k

from bc2 import recipe
from bc2.convert.importing.import_model import import_model
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry

FOLDER = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")).absolute() / "models/stories260K"

pytestmark = pytest.mark.slow

#: A story of our own: what it was trained for, and no text that it was trained on.
STORY = (
    "Once upon a time, there was a little dog named Max. Max liked to play in the park with his "
    "friend Lily. One day, they found a big red ball under a tree. Lily was very happy. She said, "
    '"Let\'s play with the ball, Max!" They played all day. When the sun went down, they went '
    "home and told their mom about the ball. Mom smiled and gave them a hug."
)

ON = """
name = "docs"
[corpus]
heldout_fraction = 0.05
[[corpus.sources]]
name = "docs"
environment = "python-docs"
max_bytes = 500_000
[tokens]
tokenizer = "tokenizer/stories260K"
[pretrain]
init = "checkpoint/stories260K"
length = "40 steps"
batch_tokens = 1024
micro_batch = 4
sequence_length = 256
z_loss = 0
precision = "fp32"
sample_prompts = 0
[pretrain.optimizer]
learning_rate = 2e-3
[pretrain.schedule]
warmup = "5 steps"
"""


@pytest.fixture
def models(home: Path, tmp_path: Path) -> list[Artifact]:
    """The model, and two of it that were trained on documentation with different seeds."""
    if not FOLDER.exists():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    stories260k.write(stories260k.read(FOLDER / "stories260K.gguf"), tmp_path / "stories260K")
    base = import_model(Registry.open(), tmp_path / "stories260K")
    (tmp_path / "docs.toml").write_text(ON)
    session = Session(Registry.open())
    trained = []
    for seed in (1, 2):
        loaded = recipe.load("docs.toml", [f"pretrain.seed={seed}", f"name=docs-{seed}"])
        trained.append(session.obtain("checkpoint", loaded, command=["bc2"]))
    return [base, *trained]


def test_merging_with_its_continuation(
    models: list[Artifact], bc2: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "story.jsonl").write_text(json.dumps({"text": STORY}))
    (tmp_path / "docs.jsonl").write_text(
        json.dumps({"text": (json.__doc__ or "") + (os.__doc__ or "") + (Path.__doc__ or "")})
    )

    def loss(ref: str, text: str) -> float:
        done = bc2("eval", ref, "--bench", "text", "--data", f"{text}.jsonl", "--json")
        assert done.code == 0, done.err
        total = json.loads(done.out)["total"]
        return float(total["nats"] / total["tokens"])

    def merged(method: str, refs: list[str], **settings: Any) -> str:
        lines = [f'name = "{method}"', "[merge]", f'method = "{method}"']
        lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        lines += [f'[[merge.models]]\nref = "{ref}"' for ref in refs]
        (tmp_path / "merge.toml").write_text("\n".join(lines))
        done = bc2("merge", "merge.toml", "--quiet")
        assert done.code == 0, done.err
        return str(done.out.strip())

    base, first, second = (model.ref for model in models)
    # It forgets stories as it learns of documentation. Half way back it says both better than one
    # of the two models does, asked by the throw of a coin.
    back = merged("linear", [base, first])
    for text in ("story", "docs"):
        assert loss(back, text) < (loss(base, text) + loss(first, text)) / 2
    assert loss(back, "story") < loss(first, "story")
    # Of two continuations every method keeps what both learnt, and more of what they forgot.
    for method, settings in {
        "linear": {}, "slerp": {"t": 0.5}, "model-stock": {"base": base},
        "ties": {"base": base}, "task-arithmetic": {"base": base, "scale": 0.5},
    }.items():  # fmt: skip
        soup = merged(method, [first, second], **settings)
        said = {text: loss(soup, text) for text in ("story", "docs")}
        print(method, said)
        assert said["docs"] < loss(base, "docs"), method
        assert said["story"] < max(loss(first, "story"), loss(second, "story")), method
