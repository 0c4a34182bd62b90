"""Checkpoints for evaluations, made in a moment without training.

``import made_checkpoints`` from any test. A tokenizer is trained on what `made_releases` writes, so
that its prompts are short; a model has either drawn weights, or says one text after any prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import made_releases
import torch

from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Registry, Role
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE, TokenizerConfig
from bc2.tokenizer.tokenizer_files import JSON_FILE
from bc2.tokenizer.train import train

VOCABULARY = 640


@cache
def tokenizer_bytes(vocab_size: int = VOCABULARY) -> bytes:
    """A SentencePiece model that knows the words of the made rows."""
    sums = [made_releases.made(number) for number in range(300)]
    texts = [f"{one.english}\n{one.chinese}\n答案是 Answer: {one.letter}" for one in sums]
    texts += ["the answer is (A). def check(candidate): assert return"] * 50
    texts += ["#### 7"] * 200
    return train(texts, TokenizerConfig(vocab_size=vocab_size)).model


def drawn(seed: int = 1, window: int = 4096, vocab_size: int = VOCABULARY) -> Transformer:
    """A model with drawn weights, large enough to prefer some answers to others."""
    model = Transformer(_config(window, vocab_size))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def saying(text: str, window: int = 4096) -> Transformer:
    """A model that continues every prompt with a text, and ends it there.

    It looks at the last token alone. So the pieces of the text differ from one another and from
    the last pieces of prompts.
    """
    tokenizer = Tokenizer.from_bytes(tokenizer_bytes())
    path = [*tokenizer.encode(text), tokenizer.eos_id]
    assert len(set(path)) == len(path) <= 24, "a piece comes twice"
    model = drawn(window=window)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.zero_()
        one_hot = torch.eye(model.config.hidden_size).__getitem__
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, 0] = 1.0
        head[:, -1] = 1.0
        for place, piece in enumerate(path):
            embedding[piece], head[piece] = one_hot(place + 1), one_hot(place)
    return model


def register(
    home: Path,
    name: str = "tiny",
    model: Transformer | None = None,
    *,
    role: Role = "base",
    tokenizer: bytes | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Artifact:
    """Register a model with its tokenizer as a checkpoint.

    Args:
        files: more of them, by name.
    """
    model = model or drawn()
    draft = Draft("checkpoint", name, name.encode().hex().ljust(64, "0")[:64], role=role)
    with Registry.open(home).stage(draft) as staged:
        save_model(staged.path, model.config, model.state_dict())
        content = tokenizer or tokenizer_bytes()
        own_name = JSON_FILE if content[:1] == b"{" else TOKENIZER_FILE
        for file, data in {own_name: content, **(files or {})}.items():
            (staged.path / file).write_bytes(data)
        return staged.publish()


def _config(window: int, vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2,
        context_length=window, initializer_range=0.5,
    )  # fmt: skip
