"""Engines without the `ray` extra: only the Ray engine needs Ray and Daft."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import bc2
from bc2.data.prep.open_engine import open_engine
from bc2.errors import UsageError

#: Every stage but `decontaminate`, which needs a benchmark, over a corpus of 30 documents.
STAGES = ("normalise", "heuristics", "quality", "passages", "near", "dense", "safety", "clusters")

SCRIPT = """
import sys
from pathlib import Path
sys.modules["ray"] = sys.modules["daft"] = None
from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep.prepare import PrepOptions, prepare
config = CorpusConfig.model_validate_json(Path(sys.argv[1]).read_text())
facts = prepare(config, Path(sys.argv[2]), options=PrepOptions(workers=1))
print(facts["train"]["documents"] + facts["heldout"]["documents"])
"""


def test_only_the_ray_engine_imports_ray_and_daft() -> None:
    root = Path(bc2.__file__).parent
    importing = set()
    for path in [*root.rglob("*.py"), *(root.parent / "commands").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            if {module.split(".")[0] for module in modules} & {"ray", "daft"}:
                importing.add(path.relative_to(root.parent).as_posix())
    assert importing == {"bc2/data/prep/ray_engine.py"}


def test_a_corpus_is_made_where_ray_and_daft_cannot_be_imported(tmp_path: Path) -> None:
    rng = random.Random(2)
    words = [
        f"{one}{two}" for one in ("bal", "tor", "mi", "ke") for two in ("na", "ru", "so", "ti")
    ]
    rows = (
        ". ".join(f"The {' '.join(rng.choices(words, k=9))} of that" for _ in range(12)) + "."
        for _ in range(30)
    )
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    sources = [{"name": "a", "path": str(raw), "lang": "en"}]
    config = {"sources": sources, "heldout_fraction": 0.0, "weights": {}}
    stated = tmp_path / "config.json"
    stated.write_text(json.dumps({**config, **{name: {} for name in STAGES}}))
    command = [sys.executable, "-c", SCRIPT, str(stated), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    assert int(done.stdout) > 0


@pytest.mark.parametrize(("module", "library"), [("ray", "Ray"), ("daft", "Daft")])
def test_what_the_ray_engine_lacks_is_named(monkeypatch, module: str, library: str) -> None:
    if module == "daft":
        pytest.importorskip("ray", reason="Ray is looked for first")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"--engine ray needs {library}") as caught:
        open_engine("ray", None, 0).__enter__()
    assert caught.value.exit_code == 2
    assert caught.value.todo == "pip install 'bc2[ray]'"
