"""The whole funnel gives the same bytes, however the work is divided, killed or ordered."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bc2.data.corpus import corpus_parts, read_corpus
from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep import pipeline
from bc2.data.prep.funnel import Funnel
from bc2.data.prep.part_files import write_part_file
from bc2.data.prep.prepare import PrepOptions, prepare
from bc2.data.prep.segment import EXAMPLES, Segment, SegmentTask, run_part
from bc2.data.prep.stages.base import Outcome, PrepStage, RemovedRow, removed
from bc2.errors import DataError, RecipeError, RunFailed

TEXT = """river mountain village winter harvest market letter captain garden evening story teacher
window journey morning history island forest kitchen question answer bridge music paper"""
WORDS = TEXT.split()
CJK = (
    "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少床前明月光疑是地上霜举头望低思故乡白日依山尽黄河入海流"
)


def english(rng: random.Random, sentences: int) -> str:
    small = ["the", "of", "and", "to", "with", "that", "have", "be"]
    made = []
    for _ in range(sentences):
        words = [rng.choice(small if rng.random() < 0.4 else WORDS) for _ in range(12)]
        made.append(f"{' '.join(words).capitalize()}.")
    return "\n\n".join(" ".join(made[i : i + 4]) for i in range(0, len(made), 4)) + "\n"


def chinese(rng: random.Random, sentences: int) -> str:
    made = ["".join(rng.choices(CJK, k=rng.randint(12, 30))) + "。" for _ in range(sentences)]
    return "\n\n".join("".join(made[i : i + 5]) for i in range(0, len(made), 5)) + "\n"


def write_sources(folder: Path) -> None:
    """Write three sources with exact, near and partial copies, personal data, malformed rows."""
    rng = random.Random(3)
    en = [english(rng, 24) for _ in range(40)]
    zh = [chinese(rng, 30) for _ in range(40)]
    # One word of every paragraph is replaced, so that no paragraph is a copy.
    near = "\n\n".join(f"So {part}" for part in en[3].split("\n\n"))
    # The first sentence of every paragraph is moved to its end: the texts share enough words, but
    # too few shingles.
    split = [part.strip().split(". ", 1) for part in en[7].split("\n\n")]
    turned = "\n\n".join(f"{rest} {first}." for first, rest in split)
    shared = en[5].split("\n\n")[1]
    web = [
        *en[:20],
        en[0],
        near,
        turned,
        f"{english(rng, 16)}\n\n{shared}\n",
        "short",
        "\x07" + en[21],
    ]
    web.append(f"Write to jane.doe@harvestmail.net about it.\n\n{english(rng, 20)}")
    for name, texts in {"books": en[20:], "web": web, "law": [*zh, zh[1], en[2]]}.items():
        half = len(texts) // 2
        (folder / name).mkdir(parents=True)
        for part, rows in (("a", texts[:half]), ("b", texts[half:])):
            lines = [json.dumps({"text": text}, ensure_ascii=False) for text in rows]
            lines.insert(1, '{"text": 3}')
            (folder / name / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    question = " ".join(en[30].split()[2:40])
    (folder / "bench.jsonl").write_text(json.dumps({"question": question}) + "\n")


def settings(folder: Path, **more: Any) -> CorpusConfig:
    sources = [
        {"name": "books", "path": str(folder / "books"), "lang": "en"},
        {"name": "web", "path": str(folder / "web"), "lang": "en"},
        {"name": "law", "path": str(folder / "law"), "lang": "zh"},
    ]
    benchmark = {"name": "b", "path": str(folder / "bench.jsonl"), "fields": ["question"]}
    tables = {
        "normalise": {},
        "heuristics": {},
        "quality": {},
        "passages": {},
        "near": {},
        "dense": {},
        "safety": {},
        "decontaminate": {"benchmarks": [benchmark]},
        "clusters": {"clusters": 3, "sample": 60},
        "weights": {"quality": [[0, 0.5], [0.7, 1]], "min_stratum_bytes": 2000},
    }
    base = {"sources": sources, "malformed": "skip", "max_malformed": 0.2, "heldout_fraction": 0.1}
    # As a recipe gives it: JSON has lists instead of tuples.
    return CorpusConfig.model_validate_json(json.dumps(base | tables | more))


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_sources(folder)
    return folder


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory) -> Path:
    """The corpus made in one process, every file of a source in one part."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(settings(raw), out, options=PrepOptions(workers=1))
    return out


def test_every_stage_removes_what_was_planted_and_the_funnel_adds_up(whole):
    facts = json.loads((whole / "funnel.json").read_bytes())
    stages = {stage["name"]: stage for stage in facts["stages"]}
    assert list(stages) == [
        "normalise", "exact", "heuristics", "quality", "passages", "near", "dense",
        "safety", "decontaminate", "clusters", "weights",
    ]  # fmt: skip
    assert stages["exact"]["removed"]["duplicate"]["documents"] == 4
    assert stages["near"]["removed"]["near_duplicate"]["documents"] >= 1
    assert stages["dense"]["removed"]["dense_duplicate"]["documents"] == 1
    assert stages["normalise"]["removed"]["control_characters"]["cut_documents"] == 1
    assert stages["safety"]["removed"]["personal_email"]["cut_documents"] == 1
    assert stages["decontaminate"]["removed"]["benchmark_overlap"]["documents"] == 1
    assert facts["malformed"]["web"]["text_not_string"]["documents"] == 2
    for stage in stages.values():
        came = sum(group["documents"] for group in stage["in"])
        left = sum(group["documents"] for group in stage["out"])
        assert came - left == sum(r["documents"] for r in stage["removed"].values())
    Funnel.open(
        whole / "funnel.json"
    )  # which checks that each stage begins where the one before ended
    texts = [document.text for document in read_corpus(whole, "train")]
    assert len(set(texts)) == len(texts)
    assert not any("@harvestmail.net" in text or "\x07" in text for text in texts)


def test_scores_clusters_and_strata_are_in_the_corpus(whole):
    facts = json.loads((whole / "corpus.json").read_bytes())
    names = [entry["name"] for entry in facts["sources"]]
    assert sum(facts["weights"].values()) == 10**9
    assert sorted(facts["weights"]) == sorted(names)
    part = pq.read_table(whole / corpus_parts(whole, "train")[0].file)
    assert {"quality", "sentence_scores", "paragraph_scores", "cluster"} <= {*part.schema.names}
    assert {"pos", "stratum"}.isdisjoint(part.schema.names)
    read = sum(entry["read"]["documents"] for entry in facts["sources"])
    kept = facts["train"]["documents"] + facts["heldout"]["documents"]
    gone = sum(e["documents"] for entry in facts["sources"] for e in entry["drops"].values())
    malformed = 6
    assert read + malformed == kept + gone


def test_the_same_bytes_from_small_parts_and_two_processes(raw, whole, tmp_path):
    prepare(settings(raw), tmp_path / "out", options=PrepOptions(workers=2, part_bytes=9_000))
    assert tree(tmp_path / "out") == tree(whole)


def test_matches_with_benchmarks_are_listed_the_same_whatever_the_parts(raw, tmp_path):
    rows = [json.loads(line) for line in (raw / "books" / "a.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows if isinstance(row["text"], str)][:5]
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("".join(json.dumps({"q": " ".join(t.split()[9:40])}) + "\n" for t in texts))
    benchmark = {"name": "quiz", "path": str(quiz), "fields": ["q"]}
    config = settings(raw, decontaminate={"benchmarks": [benchmark], "action": "report"})
    prepare(config, tmp_path / "one", options=PrepOptions(workers=1))
    prepare(config, tmp_path / "two", options=PrepOptions(workers=2, part_bytes=4_000))
    listed = (tmp_path / "one" / "contamination.jsonl").read_bytes()
    assert listed == (tmp_path / "two" / "contamination.jsonl").read_bytes()
    found = [json.loads(line) for line in listed.splitlines()]
    assert len(found) >= 5
    assert {(row["source"], row["done"]) for row in found} == {("books", "reported")}
    places = [(row["file"], row["row"]) for row in found]
    assert places == sorted(places)
    (facts,) = (
        stage["facts"]
        for stage in json.loads((tmp_path / "one" / "funnel.json").read_bytes())["stages"]
        if stage["name"] == "decontaminate"
    )
    assert (facts["pairs"], facts["not_listed"]) == (len(found), 0)


def test_the_same_bytes_from_ray(raw, whole, tmp_path):
    # In a process of its own: Daft chooses its engine once.
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from bc2.data.corpus_config import CorpusConfig\n"
        "from bc2.data.prep.prepare import PrepOptions, prepare\n"
        "config = CorpusConfig.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "prepare(config, Path(sys.argv[2]), options=PrepOptions('ray', part_bytes=20_000))\n"
    )
    stated = tmp_path / "config.json"
    stated.write_text(settings(raw).model_dump_json())
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", script, str(stated), str(tmp_path / "out")]
    subprocess.run(command, check=True, env=environment, timeout=300)
    assert tree(tmp_path / "out") == tree(whole)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(raw, whole, tmp_path, seed):
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from bc2.data.corpus_config import CorpusConfig\n"
        "from bc2.data.prep.prepare import PrepOptions, prepare\n"
        "import bc2.data.prep.stage_table\nprint('ready', flush=True)\n"
        "config = CorpusConfig.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "out, work = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "prepare(config, out, work=work, options=PrepOptions(workers=1, part_bytes=9_000))\n"
    )
    stated = tmp_path / "config.json"
    stated.write_text(settings(raw).model_dump_json())
    rng = random.Random(seed)
    for attempt in range(20):
        out = tmp_path / f"out-{attempt}"
        command = [sys.executable, "-c", script, str(stated), str(out), str(tmp_path / "work")]
        run = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert run.stdout is not None
        run.stdout.readline()
        try:
            # The time until the kill grows, so that the run ends on a slow machine too.
            run.wait(rng.uniform(0, 3) + attempt)
            break
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            # This file is written last, so if it exists, so do the others.
            if (out / "corpus.json").exists():
                break
    assert tree(out) == tree(whole)


def test_what_is_finished_is_not_done_again(raw, whole, tmp_path, monkeypatch):
    work = tmp_path / "work"
    prepare(settings(raw), tmp_path / "one", work=work, options=PrepOptions(workers=1))
    done: list[str] = []
    monkeypatch.setattr(pipeline, "run_part", lambda task: done.append(task.name))
    prepare(settings(raw), tmp_path / "two", work=work, options=PrepOptions(workers=1))
    assert done == []
    assert tree(tmp_path / "two") == tree(whole)


def test_seconds_are_of_every_step_and_outlive_the_attempt(raw, tmp_path):
    work = tmp_path / "work"
    prepare(
        settings(raw), tmp_path / "one", work=work, options=PrepOptions(workers=1, part_bytes=9_000)
    )
    first = {row["step"]: row for row in json.loads((work / "timings.json").read_bytes())}
    stages = json.loads((tmp_path / "one" / "funnel.json").read_bytes())["stages"]
    names = [stage["name"] for stage in stages]
    assert list(first) == ["reading", *names, "parts", "writing"]
    for stage in stages:
        assert first[stage["name"]]["bytes"] == sum(group["bytes"] for group in stage["in"])
    assert all(row["seconds"] > 0 for row in first.values())
    assert {"exact", "passages", "near", "decontaminate"} <= {
        name for name, row in first.items() if row["seconds"] > row["settling"] > 0
    }
    prepare(settings(raw), tmp_path / "two", work=work, options=PrepOptions(workers=1))
    again = {row["step"]: row for row in json.loads((work / "timings.json").read_bytes())}
    # what was finished is not done again, and still counts
    for name in ("reading", "heuristics", "parts"):
        assert again[name] == first[name]


def test_dropped_documents_are_kept_where_asked(raw, whole, tmp_path):
    prepare(
        settings(raw),
        tmp_path / "out",
        options=PrepOptions(workers=1, keep_dropped=tmp_path / "gone"),
    )
    facts = json.loads((whole / "funnel.json").read_bytes())
    for stage in facts["stages"]:
        files = sorted((tmp_path / "gone" / stage["name"]).glob("*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        for reason, counts in stage["removed"].items():
            mine = [row for row in rows if row["reason"] == reason]
            assert sum(row["whole"] for row in mine) == counts["documents"]
            sizes = sum(len(row["text"].encode()) for row in mine if row["whole"])
            assert sizes == counts["bytes"]
    assert tree(tmp_path / "out") == tree(whole)


def test_examples_are_ten_of_each_reason_and_language(whole):
    facts = json.loads((whole / "funnel.json").read_bytes())
    found: dict[tuple[str, str, str], int] = {}
    for example in facts["examples"]:
        key = (example["stage"], example["reason"], example["lang"])
        found[key] = found.get(key, 0) + 1
    assert max(found.values()) <= EXAMPLES
    for stage in facts["stages"]:
        for reason, counts in stage["removed"].items():
            shown = sum(
                n for (name, why, _), n in found.items() if (name, why) == (stage["name"], reason)
            )
            assert 0 < shown <= counts["documents"] + counts["cut_documents"]


class Careless(PrepStage):
    """Loses a document without a reason."""

    name: ClassVar[str] = "careless"
    version: ClassVar[int] = 1
    reasons: ClassVar[tuple[str, ...]] = ("whim",)

    def __init__(self, how: str):
        self.how = how

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        if self.how == "silent":
            return Outcome(table.slice(1), removed([]))
        if self.how == "shuffled":
            return Outcome(table.take(list(range(len(table)))[::-1]), removed([]))
        gone = removed([RemovedRow(table["pos"][0].as_py(), "another", 1, True)])
        return Outcome(table.slice(1), gone)


@pytest.mark.parametrize("how", ["silent", "shuffled", "unnamed"])
def test_a_stage_cannot_lose_documents_without_a_named_reason(tmp_path, records, how):
    write_part_file(records(["one", "two", "three"]), tmp_path / "p.parquet")
    segment = Segment((Careless(how),), None)
    task = SegmentTask(segment, tmp_path / "p.parquet", tmp_path, "q", None, None)
    with pytest.raises(RunFailed, match="careless"):
        run_part(task)
    assert not (tmp_path / "q.parquet").exists()


def test_too_many_malformed_rows_stop_the_run(raw, tmp_path):
    with pytest.raises(DataError, match=r"6 of \d+ rows could not be read") as caught:
        prepare(settings(raw, max_malformed=0.01), tmp_path / "out", options=PrepOptions(workers=1))
    assert caught.value.exit_code == 3
    assert "a.jsonl:2 text_not_string" in str(caught.value.where)
    assert not (tmp_path / "out").exists()


def test_settings_that_do_not_fit_each_other_stop_before_any_work(raw, tmp_path):
    with pytest.raises(RecipeError, match="quality"):
        prepare(settings(raw, quality=None), tmp_path / "out")
    missing = {"benchmarks": [{"name": "b", "path": str(tmp_path / "no"), "fields": ["q"]}]}
    with pytest.raises((RecipeError, DataError)):
        prepare(settings(raw, decontaminate=missing), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_process_is_left(raw, tmp_path):
    import psutil

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    prepare(settings(raw), tmp_path / "out", options=PrepOptions(workers=2))
    time.sleep(0.1)
    after = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid not in before and "spawn_main" in " ".join(child.cmdline())
    ]
    assert after == []
