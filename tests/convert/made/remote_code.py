"""Models that come with their code, as transformers loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers


def load(folder: Path, **options: Any) -> Any:
    """The model of a folder, in fp32; every weight must be there, and none beside."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True,
        **{"dtype": torch.float32, **options},
    )  # fmt: skip
    assert not any(found.values()), found
    return model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder."""
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
