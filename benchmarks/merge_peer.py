"""`bc2 merge` beside mergekit: time, peak memory and the numbers, over models of random weights.

    python benchmarks/merge_peer.py --folder /tmp/merge --mergekit ENV/bin/mergekit-yaml --layers 2

Models are of Baichuan 2 7B's width if no other is given, in bf16, and both programs read the same
files: a NormHead is none of mergekit's, so they have none. Both compute in fp32, and write bf16 or
fp32. `--layers 32 --vocab 125696 --models 2` is the whole of 7B: 15 GB for each model and for each
result. Random bf16 weights have many equal differences, of which TIES keeps others in mergekit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import torch
from torch import Tensor

from bc2.convert.stored_tensor import safetensors_of
from bc2.convert.tensor_files import write_tensors
from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes, save_config
from bc2.registry import Artifact, Draft, Registry, stage_key

#: By method: our settings, and mergekit's parameters of the merge and of each model.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "linear": ({}, {"normalize": True}, {"weight": 1.0}),
    "task-arithmetic": ({"scale": 0.4}, {"lambda": 0.4, "normalize": False}, {"weight": 1.0}),
    "slerp": ({"t": 0.3}, {"t": 0.3}, {}),
    "model-stock": ({}, {}, {}),
    "ties": (
        {"density": 0.2, "trim": "tensor"},
        {"normalize": True, "lambda": 1.0},
        {"weight": 1.0, "density": 0.2},
    ),
}


THEIR_NAMES = {"bf16": "bfloat16", "fp32": "float32"}


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    cpu: float
    """Seconds of all cores, which other work on the machine changes less."""
    peak: int
    """Resident bytes, of which the pages of files that are mapped are a part."""
    anonymous: int
    """Bytes that are of no file."""


def main() -> None:
    options = read_options()
    os.environ["BC2_HOME"] = str(options.folder / "home")
    base, *models = make_models(options)
    print(f"{base.manifest.facts['params'] / 1e9:.2f}B parameters, {len(models)} models and a base")
    for method in options.methods:
        of_method = models[:2] if method == "slerp" else models
        ours, made = run_ours(options, method, base, of_method)
        line = f"{method:16} bc2 {shown(ours)}"
        if options.mergekit is not None:
            out = options.folder / "mergekit"
            theirs = run_theirs(options, method, base, of_method, out)
            line += f"   mergekit {shown(theirs)}   largest difference {difference(made, out):.3g}"
            shutil.rmtree(out)
        print(line, flush=True)
        Registry.open().remove(made)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml, of an environment with it")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--dtype", choices=THEIR_NAMES, default="bf16")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    return parser.parse_args()


def make_models(options: argparse.Namespace) -> list[Artifact]:
    """A base and models near it, registered; found if they are there."""
    config = ModelConfig(
        vocab_size=options.vocab, hidden_size=options.width,
        intermediate_size=options.width * 43 // 16, num_layers=options.layers,
        num_heads=options.width // 128, norm_head=False,
    )  # fmt: skip
    found: list[Artifact] = []
    for number in range(options.models + 1):
        parents = (found[0].digest,) if found else ()
        settings = {"model": config.keyed(), "number": number}
        key = stage_key("checkpoint", 1, settings, parents)
        known = Registry.open().find("checkpoint", key)
        found.append(known or make_model(config, number, key, parents))
    return found


def make_model(config: ModelConfig, number: int, key: str, parents: tuple[str, ...]) -> Artifact:
    draft = Draft("checkpoint", f"m{number}", key, parents, facts={"params": config.num_params()})
    shapes = expected_shapes(config)
    with Registry.open().stage(draft) as staged:
        save_config(staged.path, config)
        # With these names and this type mergekit knows the tensors and transformers the settings.
        told = {"architectures": ["BaichuanForCausalLM"], "model_type": "llama",
                "num_hidden_layers": config.num_layers, "vocab_size": config.vocab_size,
                "hidden_size": config.hidden_size, "torch_dtype": "bfloat16"}  # fmt: skip
        (staged.path / "config.json").write_text(json.dumps(told))
        (staged.path / "tokenizer.model").write_bytes(tokenizer())
        write_tensors(
            staged.path,
            {name: ("BF16", shape) for name, shape in shapes.items()},
            lambda name: drawn(name, shapes[name], number),
        )
        return staged.publish()


def drawn(name: str, shape: Sequence[int], number: int) -> Iterator[memoryview]:
    """A tensor of the base (0), or of a model near it, in pieces."""
    seeds = [name, f"{name} of all", f"{name} of {number}"]
    chances = [torch.Generator().manual_seed(hash_of(seed)) for seed in seeds]
    step = max(1, (4 << 20) // max(1, shape[-1] if len(shape) > 1 else 1))
    for first in range(0, shape[0], step):
        rows = (min(step, shape[0] - first), *shape[1:])
        base, common, own = (torch.randn(rows, generator=chance) for chance in chances)
        made = (0.02 * base + 0.002 * (common + own) * (number > 0)).to(torch.bfloat16)
        yield made.reshape(-1).view(torch.uint8).numpy().data


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-7:]) % 2**31 + len(text)


def tokenizer() -> bytes:
    from io import BytesIO

    out = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["seven stones and a shell by the sea"] * 10), model_writer=out,
        vocab_size=280, model_type="bpe", byte_fallback=True, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return out.getvalue()


def run_ours(
    options: argparse.Namespace, method: str, base: Artifact, models: Sequence[Artifact]
) -> tuple[Cost, Artifact]:
    settings = {"method": method, "dtype": options.dtype, **METHODS[method][0]}
    if method not in ("linear", "slerp"):
        settings["base"] = base.ref
    lines = ['name = "merged"', "[merge]", *(f"{k} = {json.dumps(v)}" for k, v in settings.items())]
    lines += [f'[[merge.models]]\nref = "{model.ref}"' for model in models]
    recipe = options.folder / "merge.toml"
    recipe.write_text("\n".join(lines) + "\n")
    cost, said = measured([sys.executable, "-m", "bc2", "merge", str(recipe), "--quiet"])
    return cost, Registry.open().resolve(said.strip())


def run_theirs(
    options: argparse.Namespace, method: str, base: Artifact, models: Sequence[Artifact], out: Path
) -> Cost:
    _, whole, each = METHODS[method]
    config: dict[str, Any] = {
        "merge_method": method.replace("-", "_"),
        "dtype": "float32", "out_dtype": THEIR_NAMES[options.dtype],
        "parameters": whole,
        "models": [{"model": str(model.path), "parameters": each} for model in models],
    }  # fmt: skip
    if method != "linear":
        first = models[0] if method == "slerp" else base
        config["base_model"] = str(first.path)
    path = options.folder / "mergekit.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    words = [str(options.mergekit), str(path), str(out), "--no-copy-tokenizer", "--quiet"]
    return measured(words)[0]


def measured(command: Sequence[str]) -> tuple[Cost, str]:
    """Run a command; what it took, and what it printed. Raises: SystemExit: it failed."""
    begun = time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    most = {"VmHWM": 0, "RssAnon": 0}

    def look() -> None:
        while running.poll() is None:
            try:
                lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
            except OSError:
                return
            for line in lines:
                name, _, value = line.partition(":")
                if name in most:
                    most[name] = max(most[name], int(value.split()[0]) * 1024)
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    before = os.times()
    out, err = running.communicate()
    watcher.join()
    after = os.times()
    cpu = after.children_user - before.children_user
    cpu += after.children_system - before.children_system
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}\n{err}")
    return Cost(time.monotonic() - begun, cpu, most["VmHWM"], most["RssAnon"]), out


def difference(made: Artifact, out: Path) -> float:
    """The largest between two results, in units of the largest number of its tensor."""
    theirs = {
        name: tensor
        for path in out.glob("*.safetensors")
        for name, tensor in safetensors_of(path).items()
    }
    largest = 0.0
    for file in made.files("model-") or ["model.safetensors"]:
        if not file.endswith(".safetensors"):
            continue
        for name, ours in safetensors_of(made.path / file).items():
            for first in range(0, ours.shape[0], 1024):
                count = min(1024, ours.shape[0] - first)
                one, other = (t.rows(first, count).float() for t in (ours, theirs[name]))
                largest = max(largest, relative(one, other))
    return largest


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-9))


def shown(cost: Cost) -> str:
    memory = f"{cost.peak / 1e9:5.2f} GB ({cost.anonymous / 1e9:.2f} without files)"
    return f"{cost.seconds:6.1f} s ({cost.cpu:.1f} of CPU) {memory}"


if __name__ == "__main__":
    main()
