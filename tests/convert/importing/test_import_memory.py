"""What an import holds: its largest tensor and no more than 1 GB besides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from made_hf_models import original
from weight_files import Kind, write_weights

GB = 10**9

#: Prints its memory before an import, and at the peak: ru_maxrss would begin with the parent's.
PROGRAM = """
import sys
from pathlib import Path
import torch, safetensors.torch, transformers.utils.hub
from bc2.convert.importing.import_model import import_model
from bc2.registry import Registry

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

registry = Registry.open(Path(sys.argv[1]))
before = status("VmRSS")
import_model(registry, Path(sys.argv[2]))
print(before, status("VmHWM"))
"""


@pytest.fixture(scope="module")
def large() -> dict[str, torch.Tensor]:
    """1.45 GB in bf16: a table of 262 MB, and layers of which the largest matrix is 96 MB."""
    config = transformers.LlamaConfig(
        vocab_size=64000, hidden_size=2048, intermediate_size=23500, num_hidden_layers=3,
        num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    chance = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 2**14, tensor.shape, dtype=torch.int16, generator=chance).view(
            torch.bfloat16
        )
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_memory(large: dict[str, torch.Tensor], tmp_path: Path, kind: Kind, shards: int) -> None:
    source = tmp_path / "large"
    original("llama3").write(source)
    (source / "model.safetensors").unlink()
    path = source / "config.json"
    settings = json.loads(path.read_text()) | {
        "vocab_size": 64000, "hidden_size": 2048, "intermediate_size": 23500,
        "num_hidden_layers": 3, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 128, "dtype": "bfloat16",
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    write_weights(source, large, kind, shards)
    total = sum(tensor.nbytes for tensor in large.values())
    assert total > 1.4 * GB
    command = [sys.executable, "-P", "-c", PROGRAM, str(tmp_path / "home"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    grown, largest = after - before, max(tensor.nbytes for tensor in large.values())
    print(f"{kind} in {shards}: {grown / 1e6:,.0f} MB over {before / 1e6:,.0f} MB")
    assert grown < largest + GB
    assert grown < largest, "a tensor is held as a whole"
