"""What a merge holds: some rows of each model, whatever its largest tensor is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_hf_models import original

from bc2.convert.importing.import_model import import_model
from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes, save_config
from bc2.parallel.state import plan_files
from bc2.registry import Artifact, Draft, Registry, stage_key

GB = 10**9

CONFIG = ModelConfig(
    vocab_size=64000, hidden_size=4096, intermediate_size=1024, num_layers=1, num_heads=32
)

#: Prints its memory before a merge, and at the peak: ru_maxrss would begin with the parent's.
PROGRAM = """
import sys
from pathlib import Path
from bc2.convert.merging.merge_models import merge_models, read_merge
from bc2.registry import Registry

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

registry, recipe = Registry.open(), read_merge(sys.argv[1])
before = status("VmRSS")
merge_models(registry, recipe)
print(before, status("VmHWM"))
"""


def empty_model(number: int, parents: tuple[str, ...], speech: Artifact) -> Artifact:
    """Zeros that take no room on the disk: 1.2 GB in bf16, a table of 524 MB."""
    key = stage_key("checkpoint", 1, {"number": number}, parents)
    tensors = {name: ("BF16", shape) for name, shape in expected_shapes(CONFIG).items()}
    with Registry.open().stage(Draft("checkpoint", f"m{number}", key, parents)) as staged:
        save_config(staged.path, CONFIG)
        text = speech.file("tokenizer.model").read_bytes()
        (staged.path / "tokenizer.model").write_bytes(text)
        for name, file in plan_files("model", tensors, 100 * GB).items():
            file.create(staged.path / name)
        return staged.publish()


@pytest.mark.slow
def test_memory(home: Path) -> None:
    original("baichuan2-7b").write(home.parent / "original")
    speech = import_model(Registry.open(), home.parent / "original")
    base = empty_model(0, (), speech)
    models = [empty_model(number, (base.digest,), speech) for number in (1, 2)]
    for method in ("linear", "ties", "model-stock"):
        settings = {"method": method, "dtype": "bf16"}
        settings |= {} if method == "linear" else {"base": base.ref}
        lines = ["[merge]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        lines += [f'[[merge.models]]\nref = "{model.ref}"' for model in models]
        Path("merge.toml").write_text("\n".join([f'name = "{method}"', *lines]))
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, "merge.toml"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        before, after = map(int, done.stdout.split())
        print(f"{method}: {(after - before) / 1e6:,.0f} MB over {before / 1e6:,.0f} MB")
        assert after - before < 0.25 * GB, "far less than the largest tensor"
