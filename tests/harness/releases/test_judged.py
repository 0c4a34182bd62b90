"""FB-Bench and CFBench are read for searching, and are none that `bc2 eval` asks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bc2.errors import DataError
from bc2.harness.release import SEARCHED, SOURCES, local_release

BENCH = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "bench"

FB_ROW = {"user_query": "问", "origin_first_response": "答", "feedback": "不对", "checklist": []}
CF_ROW = {"idx": 0, "prompt": "写一首诗。", "criteria": "[]"}


def test_rows_are_the_texts_that_a_model_is_asked(tmp_path: Path) -> None:
    (tmp_path / "fb_bench_dataset_v3.json").write_text(json.dumps([FB_ROW]))
    (tmp_path / "cfbench_data.json").write_text(json.dumps([CF_ROW, CF_ROW]))
    fbbench, cfbench = (local_release(name, tmp_path) for name in ("fbbench", "cfbench"))
    assert fbbench is not None
    assert cfbench is not None
    (rows,) = (splits["test"] for splits in fbbench.datasets.values())
    assert rows == [{name: FB_ROW[name] for name in list(FB_ROW)[:3]}]
    (rows,) = (splits["test"] for splits in cfbench.datasets.values())
    assert rows == [{"prompt": CF_ROW["prompt"]}] * 2
    assert SEARCHED.keys() - SOURCES.keys() == {"fbbench", "cfbench"}


def test_a_row_without_its_texts_is_named(tmp_path: Path) -> None:
    (tmp_path / "cfbench_data.json").write_text(json.dumps([CF_ROW, {"idx": 1}]))
    with pytest.raises(DataError) as raised:
        local_release("cfbench", tmp_path)
    assert "cfbench_data.json:2" in str(raised.value)


@pytest.mark.skipif(not BENCH.is_dir(), reason="needs ../shared/data/bench, or BC2_TEST_DATA")
@pytest.mark.parametrize(("name", "count"), [("fbbench", 591), ("cfbench", 1_000)])
def test_the_authors_files_have_their_rows(name: str, count: int) -> None:
    release = local_release(name, BENCH / name)
    assert release is not None
    (splits,) = release.datasets.values()
    assert len(splits["test"]) == count
