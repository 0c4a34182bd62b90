"""The funnel on a Ray cluster of three nodes: the same bytes, also when a node is lost.

The nodes are processes of this machine, each with a raylet, workers and object store of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep.prepare import PrepOptions, prepare

pytestmark = pytest.mark.slow

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs ray")

SCRIPT = """
import sys
from pathlib import Path
from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep.prepare import PrepOptions, prepare
config = CorpusConfig.model_validate_json(Path(sys.argv[1]).read_text())
options = PrepOptions("ray", part_bytes=20_000)
prepare(config, Path(sys.argv[2]), work=Path(sys.argv[3]), options=options)
"""

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    head = {**NODE, "include_dashboard": False}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


def config(folder: Path) -> CorpusConfig:
    rng = random.Random(5)
    words = [f"word{i}" for i in range(400)]
    for source in ("a", "b"):
        (folder / source).mkdir()
        texts = []
        for _ in range(150):
            sentences = (" ".join(rng.choices(words, k=12)).capitalize() for _ in range(20))
            texts.append(". ".join(sentences) + ".")
        texts += [texts[0], f"So {texts[1]}"]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / source / "x.jsonl").write_text(rows)
    sources = [{"name": name, "path": str(folder / name), "lang": "en"} for name in ("a", "b")]
    stages: dict[str, Any] = {"normalise": {}, "passages": {}, "near": {}, "dense": {}}
    stages |= {"clusters": {"clusters": 3, "sample": 60}, "weights": {}}
    return CorpusConfig.model_validate_json(json.dumps({"sources": sources} | stages))


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("lose", [False, True], ids=["whole", "a node is lost"])
def test_the_same_bytes_from_three_nodes(cluster, tmp_path, lose):
    stated = tmp_path / "config.json"
    settings = config(tmp_path)
    stated.write_text(settings.model_dump_json())
    prepare(settings, tmp_path / "here", options=PrepOptions(workers=1))
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    work = tmp_path / "work"
    command = [sys.executable, "-c", SCRIPT, str(stated), str(tmp_path / "there"), str(work)]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    run = subprocess.Popen(command, env=environment)
    if lose:
        # The first passes are done, and most are still to come.
        while not (work / "segment-1").exists() and run.poll() is None:
            time.sleep(0.02)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert run.poll() is None
    assert run.wait(1200) == 0
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
