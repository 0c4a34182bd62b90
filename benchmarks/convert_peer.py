"""`bc2 convert --to gguf` beside llama.cpp's convert_hf_to_gguf.py: time, memory, the numbers.

    python benchmarks/convert_peer.py --converter LLAMA_CPP/convert_hf_to_gguf.py --layers 4

A model of Baichuan 2 7B's width and random bf16 is registered, and written once as `llama`, which
is what the converter reads; ours reads the checkpoint. `--layers 32 --vocab 125696` is the whole of
7B. The converter runs in this environment (it needs transformers), or in that of `--python`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from convert_speed import random_checkpoint, timed
from gguf import GGUFReader

from bc2.model.model_config import ModelConfig
from bc2.registry import Registry

#: By our names of types those of the converter.
TYPES = {"fp16": "f16", "bf16": "bf16", "q8_0": "q8_0", "fp32": "f32"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--converter", type=Path, required=True)
    options.add_argument("--python", default=sys.executable, help="what runs the converter")
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--vocab", type=int, default=32_000)
    options.add_argument("--dtypes", nargs="+", choices=TYPES, default=["fp16", "q8_0"])
    asked = options.parse_args()
    config = ModelConfig(
        vocab_size=asked.vocab, hidden_size=4096, intermediate_size=11_008,
        num_layers=asked.layers, num_heads=32, norm_head=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=os.environ.get("BC2_BENCH_FOLDER")) as name:
        folder = Path(name)
        os.environ["BC2_HOME"] = f"{name}/home"
        random_checkpoint(Registry.open(), config)
        print(f"{config.num_params() / 1e9:.2f}B parameters, {os.cpu_count()} CPUs", flush=True)
        source = as_llama(folder)
        for dtype in asked.dtypes:
            compare(asked, folder, source, dtype)


def as_llama(folder: Path) -> Path:
    """The model in the layout that the converter reads."""
    convert(["--to", "llama", "--name", "llama"])
    (made,) = Registry.open().list("export")
    source = folder / "llama"
    shutil.copytree(made.path, source)
    Registry.open().remove(made)
    return source


def compare(asked: argparse.Namespace, folder: Path, source: Path, dtype: str) -> None:
    words = ["--to", "gguf", "--dtype", dtype, "--name", dtype]
    ours = convert(words)
    (made,) = Registry.open().list("export")
    theirs_at = folder / "theirs.gguf"
    script = [asked.python, str(asked.converter), str(source), "--outtype", TYPES[dtype]]
    theirs = quiet([*script, "--outfile", str(theirs_at)])
    same, count = same_tensors(next(made.path.glob("*.gguf")), theirs_at)
    for who, (seconds, peak) in (("bc2", ours), ("llama.cpp", theirs)):
        print(f"{dtype} {who:9} {seconds:7.1f} s, peak {peak / 1e9:.2f} GB", flush=True)
    print(f"{dtype} tensors bit for bit the same: {same} of {count}", flush=True)
    theirs_at.unlink()
    Registry.open().remove(made)


def convert(words: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak of memory of ours, its start included."""
    return timed([sys.executable, "-m", "bc2", "convert", "large", *words, "--no-proof", "--quiet"])


def quiet(command: Sequence[str]) -> tuple[float, int]:
    return timed(["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *command])


def same_tensors(ours: Path, theirs: Path) -> tuple[int, int]:
    """How many of the tensors are the same, and how many there are."""
    here, there = (
        {one.name: one.data for one in GGUFReader(path).tensors} for path in (ours, theirs)
    )
    if here.keys() != there.keys():
        raise SystemExit(f"different tensors: {sorted(here.keys() ^ there.keys())[:5]}")
    return sum(np.array_equal(here[name], there[name]) for name in here), len(here)


if __name__ == "__main__":
    main()
