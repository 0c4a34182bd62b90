"""`bc2 data prep` beside datatrove: raw JSONL to surviving documents, in turn.

    python benchmarks/funnel.py --corpus ../shared/data/corpus --megabytes 150 --what near \
        --datatrove VENV/bin/python

The other environment needs datatrove[processing], orjson and xxhash<3.6. Both get the same
plain JSONL files and two worker processes; both start with an empty process, which is timed
too. `near`: MinHash alone, with as many hashes, bands and words a shingle; ours also reads the
files' digests, drops exact copies, verifies every pair and registers the corpus. `whole`:
heuristics (Gopher, C4, FineWeb), sentence and document deduplication, personal data; ours also
scores sentences. `--tokenizer own` leaves datatrove its default, spaCy's English words;
`--tokenizer regex` gives it regular expressions that tell Chinese characters apart, as ours do.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from bc2.data.prep.settings import NearSettings
from bc2.data.prep.stages.near import NearStage

PEER = r"""
import re, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import minhash, sentence_dedup
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.typeshelper import Languages
from datatrove.utils.word_tokenizers import WordTokenizer

class Words(WordTokenizer):
    words = re.compile("[\u3000-\u9fff]|[^\\W\u3000-\u9fff]+")
    sentences = re.compile("[^.!?\u3002\uff01\uff1f\n]+[.!?\u3002\uff01\uff1f]*\\s*")
    def word_tokenize(self, text):
        return self.words.findall(text)
    def sent_tokenize(self, text):
        return self.sentences.findall(text)
    def span_tokenize(self, text):
        return [match.span() for match in self.sentences.finditer(text)]

def main():
    what, source, out, tokenizer = sys.argv[1:5]
    files, workers, bands, rows, shingle = map(int, sys.argv[5:])
    words = Words() if tokenizer == "regex" else Languages.english
    config = minhash.MinhashConfig(n_grams=shingle, num_buckets=bands, hashes_per_bucket=rows)
    stages = []
    clean = source
    if what == "whole":
        clean, passages = f"{out}/clean", f"{out}/passages"
        # Limits that nothing exceeds: every check is computed, and as many documents as with us
        # come to the later stages (its English limits drop nine of ten of these).
        top, repeated = ((2, 2), (3, 2), (4, 2)), tuple((n, 2) for n in range(5, 11))
        filters = [
            GopherRepetitionFilter(2, 2, 2, 2, top, repeated, language=words),
            GopherQualityFilter(1, 10**9, 0.01, 10**6, 10**6, 2, 2, 1e-9, 0, language=words),
            C4QualityFilter(
                filter_no_terminal_punct=False, min_num_sentences=0, min_words_per_line=0,
                max_word_length=10**9, filter_javascript=False, filter_curly_bracket=False,
                filter_policy=False, language=words,
            ),
            FineWebQualityFilter(
                line_punct_thr=0, short_line_thr=2, char_duplicates_ratio=2,
                new_line_ratio=10**6, language=words,
            ),
        ]
        sentences = sentence_dedup.SentDedupConfig(n_sentences=3)
        stages += [
            ([JsonlReader(source), *filters, JsonlWriter(passages, compression=None),
              sentence_dedup.SentenceDedupSignature(
                  f"{out}/ssig", config=sentences, language=words)], files),
            ([sentence_dedup.SentenceFindDedups(f"{out}/ssig", f"{out}/sdup", config=sentences)],
             1),
            ([JsonlReader(passages),
              sentence_dedup.SentenceDedupFilter(f"{out}/sdup", config=sentences, language=words),
              JsonlWriter(clean, compression=None)], files),
        ]
    last = [PIIFormatter()] if what == "whole" else []
    stages += [
        ([JsonlReader(clean), minhash.MinhashDedupSignature(f"{out}/sig", config, language=words)],
         files),
        ([minhash.MinhashDedupBuckets(f"{out}/sig", f"{out}/buckets", config=config)], bands),
        ([minhash.MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config)], 1),
        ([JsonlReader(clean), minhash.MinhashDedupFilter(f"{out}/remove"), *last,
          JsonlWriter(f"{out}/kept", compression=None)], files),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=workers, logging_dir=f"{out}/logs/{number}"
        ).run()

if __name__ == "__main__":
    main()
"""

#: Our recipe's tables, by what is measured.
TABLES = {
    "near": "[corpus.near]\n",
    "whole": "[corpus.heuristics]\n[corpus.quality]\n[corpus.passages]\n[corpus.near]\n"
    "[corpus.safety]\n",
}


def make_input(corpus: Path, megabytes: int, files: int, folder: Path) -> tuple[int, int]:
    """Documents of every file of the corpus in turn, as plain JSONL; (documents, bytes)."""
    folder.mkdir()
    documents = size = 0
    with ExitStack() as stack:
        paths = sorted(corpus.glob("*.jsonl.gz"))
        streams = [stack.enter_context(gzip.open(path, "rb")) for path in paths]
        names = [folder / f"{number:02d}.jsonl" for number in range(files)]
        outs = [stack.enter_context(path.open("wb")) for path in names]
        while streams and size < megabytes * 1_000_000:
            stream = streams[documents % len(streams)]
            line = stream.readline()
            if not line:
                streams.remove(stream)
                continue
            text = json.loads(line)["text"]
            row = {"id": str(documents), "text": text}
            outs[documents % files].write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            documents, size = documents + 1, size + len(text.encode())
    return documents, size


def timed(command: list[str], log: Path, **environment: str) -> tuple[float, str]:
    """Wall seconds of a process, and what it printed."""
    began = time.perf_counter()
    with log.open("w") as errors:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{log.read_text()[-3000:]}")
    return seconds, done.stdout


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


def main(
    corpus: Annotated[Path, typer.Option(help="Folder of *.jsonl.gz.")],
    datatrove: Annotated[Path, typer.Option(help="Python of an environment that has it.")],
    what: Annotated[Literal["near", "whole"], typer.Option(help="What is done.")] = "near",
    megabytes: Annotated[int, typer.Option(help="Text to take.")] = 150,
    files: Annotated[int, typer.Option(help="Input files, the unit of datatrove's work.")] = 8,
    workers: Annotated[int, typer.Option(help="Processes of each.")] = 2,
    runs: Annotated[int, typer.Option(help="Runs of each, alternating.")] = 3,
    tokenizer: Annotated[Literal["own", "regex"], typer.Option(help="datatrove's.")] = "own",
    peer_bands: Annotated[bool, typer.Option(help="datatrove's own 14 bands of 8.")] = False,
) -> None:
    """Both on the same input, in turn."""
    near, stage = NearSettings(), NearStage(NearSettings())
    version = "import importlib.metadata as m; print(m.version('datatrove'), m.version('orjson'))"
    peer = subprocess.run([datatrove, "-c", version], capture_output=True, text=True, check=True)
    bands, rows = (14, 8) if peer_bands else (stage.bands, stage.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in"
        documents, size = make_input(corpus, megabytes, files, source)
        (folder / "peer.py").write_text(PEER)
        recipe = folder / "bench.toml"
        recipe.write_text(
            'name = "bench"\ndescription = "benchmark"\n[corpus]\nheldout_fraction = 0.0\n'
            f'[[corpus.sources]]\nname = "s"\npath = "{source}"\n{TABLES[what]}'
        )
        print(
            f"{what}: {documents:,} documents, {size / 1e6:.0f} MB of text, {files} files; "
            f"{workers} workers, {os.cpu_count()} cores; shingles of {near.shingle} words\n"
            f"bc2 {importlib.metadata.version('bc2')}: {stage.bands} bands of {stage.rows}, "
            f"threshold {near.threshold}\n"
            f"datatrove, orjson {peer.stdout.strip()}: {bands} bands of {rows}, "
            f"{tokenizer} tokenizer",
            flush=True,
        )
        seconds: dict[str, list[float]] = {"bc2": [], "datatrove": []}
        for number in range(runs):
            home, theirs = folder / "home", folder / "theirs"
            me = [sys.executable, "-m", "bc2", "data", "prep", str(recipe), "--json"]
            me += ["--workers", str(workers)]
            you = [str(datatrove), str(folder / "peer.py"), what, str(source), str(theirs)]
            you += [tokenizer]
            you += [str(value) for value in (files, workers, bands, rows, near.shingle)]
            took, said = timed(me, folder / "mine.log", BC2_HOME=str(home))
            seconds["bc2"].append(took)
            took, _ = timed(you, folder / "theirs.log")
            seconds["datatrove"].append(took)
            print(
                f"run {number}: bc2 {seconds['bc2'][-1]:.2f} s, kept "
                f"{json.loads(said)['facts']['train']['documents']:,}; datatrove {took:.2f} s, "
                f"kept {lines(theirs / 'kept'):,}",
                flush=True,
            )
            shutil.rmtree(home)
            shutil.rmtree(theirs)
    ratios = [b / a for a, b in zip(seconds["bc2"], seconds["datatrove"], strict=True)]
    print(
        f"ratio {statistics.median(ratios):.1f} (median of {runs}; {min(ratios):.1f} to "
        f"{max(ratios):.1f})"
    )


if __name__ == "__main__":
    typer.run(main)
