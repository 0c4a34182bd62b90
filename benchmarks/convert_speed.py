"""How fast a conversion is beside a copy of its file, and how much memory it takes.

    python benchmarks/convert_speed.py [--gigabytes 4] [--pairs 3] [--to safetensors]

A checkpoint of random bf16 is registered in an empty home. In turns it is copied (``cp``, then
``sync``) and converted without a proof (`bc2 convert`, in a process of its own). Printed are both
speeds, their ratio for each pair, and the conversion's peak of memory above a start of bc2. A start
(`--dry-run`: seconds whatever the size) is measured apart, and is not in the conversion's speed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bc2.convert.tensor_files import write_tensors
from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes, save_config
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import train


def model_of(size: float) -> ModelConfig:
    """A Baichuan 2 of 7B's width with as many layers as make about so many bytes in bf16."""
    table, layer = 2 * 32_000 * 4096 * 2, 2 * (4 * 4096**2 + 3 * 4096 * 11_008)
    layers = max(1, round((size - table) / layer))
    return ModelConfig(
        vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_layers=layers,
        num_heads=32,
    )  # fmt: skip


def random_checkpoint(registry: Registry, config: ModelConfig, *, sparse: bool = False) -> Artifact:
    """Register a model of random bf16 below 2, or of zeros that take no room on the disk."""
    shapes = expected_shapes(config)
    chance = torch.Generator().manual_seed(0)

    def pieces(name: str):  # type: ignore[no-untyped-def]
        left = 2 * torch.Size(shapes[name]).numel()
        while left:
            size = min(left, 32 << 20)
            bits = torch.randint(0, 0x3FFF, (size // 2,), dtype=torch.int16, generator=chance)
            yield bits.view(torch.uint8).numpy().data
            left -= size

    draft = Draft("checkpoint", "large", stage_key("checkpoint", 1, {"sparse": sparse}, ()))
    with registry.stage(draft) as staged:
        save_config(staged.path, config)
        text = Path(argparse.__file__).read_text()
        made = train([text], TokenizerConfig(vocab_size=640)).model
        (staged.path / "tokenizer.model").write_bytes(made)
        nothing = (lambda name: ()) if sparse else pieces
        write_tensors(staged.path, {n: ("BF16", s) for n, s in shapes.items()}, nothing)
        return staged.publish()


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds of a command, and its peak of memory in bytes."""
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--gigabytes", type=float, default=4)
    options.add_argument("--pairs", type=int, default=3)
    options.add_argument("--to", default="safetensors")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BC2_BENCH_FOLDER")) as folder:
        os.environ["BC2_HOME"] = f"{folder}/home"
        artifact = random_checkpoint(Registry.open(), model_of(asked.gigabytes * 1e9))
        size = sum(path.stat().st_size for path in artifact.path.glob("*.safetensors"))
        dry = [sys.executable, "-m", "bc2", "convert", "large", "--to", asked.to, "--dry-run", "-q"]
        start, idle = min(timed(dry) for _ in range(3))
        ratios = []
        for number in range(asked.pairs):
            copied, converted = in_turns(folder, artifact, asked.to, number)
            seconds = converted[0] - start
            ratios.append(copied / seconds)
            print(
                f"{size / 1e9:.2f} GB: copied at {size / copied / 1e6:,.0f} MB/s, converted at "
                f"{size / seconds / 1e6:,.0f} MB/s ({ratios[-1]:.2f}), start {start:.1f} s, "
                f"peak {(converted[1] - idle) / 1e6:,.0f} MB above a start",
                flush=True,
            )
        print(
            f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        )


def in_turns(
    folder: str, artifact: Artifact, to: str, number: int
) -> tuple[float, tuple[float, int]]:
    """Seconds of a copy; seconds and peak of a conversion. Every other time the latter begins."""
    files = " ".join(str(path) for path in artifact.path.glob("*.safetensors"))
    copy = ["sh", "-c", f"mkdir {folder}/copy && cp {files} {folder}/copy && sync {folder}/copy/*"]
    convert = [sys.executable, "-m", "bc2", "convert", "large", "--to", to, "--no-proof", "-q"]
    convert += ["--name", f"n{number}"]
    found = {}
    for what in ("copy", "convert") if number % 2 == 0 else ("convert", "copy"):
        found[what] = timed(
            copy if what == "copy" else [*convert, "--name", f"n{number}", "--quiet"]
        )
        subprocess.run(["sh", "-c", f"rm -rf {folder}/copy"], check=True)
        for one in Registry.open().list("export"):
            Registry.open().remove(one)
    return found["copy"][0], found["convert"]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
