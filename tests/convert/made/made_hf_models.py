"""Tiny models of other families in Hugging Face's layout on disk, and what the originals say.

``MODELS`` has each by name. Those that transformers knows are made by it; Baichuan's, which it does
not know, are in the layout of their release (`made_baichuan`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import baichuan_reference
import made_baichuan
import made_chats
import made_json_tokenizers
import torch
import transformers
from torch import Tensor
from weight_files import Kind, write_weights

#: Tokens that each model reads.
WINDOW = 256


class Original(ABC):
    """A model of another family.

    Attributes:
        state: its weights as they are stored, by its own names.
        vocab_size: rows of its table.
        layout: the name of its chat layout in bc2, or None.
        tokenizer_file: the name of its tokenizer's file.
    """

    state: dict[str, Tensor]
    vocab_size: int
    layout: str | None
    tokenizer_file: str

    @abstractmethod
    def write(self, folder: Path, kind: Kind = "safetensors", shards: int = 1) -> None:
        """Write it into a folder that is not there yet."""

    @abstractmethod
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Of each token of a text: [T, V]."""

    @abstractmethod
    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation, which no token ends."""

    def imported(self) -> dict[str, Tensor]:
        """Its weights as bc2 is to store them: bit for bit, but q, k and v are one matrix."""
        found = {}
        for name, tensor in self.state.items():
            if "q_proj" in name:
                parts = [self.state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                found[name.replace("q_proj", "W_pack")] = torch.cat(parts)
            elif not any(part in name for part in ("k_proj", "v_proj", "inv_freq")):
                found[name] = tensor
        return found


@dataclass(frozen=True)
class Family:
    """What a model of transformers is made of."""

    name: str
    settings: dict[str, Any]
    tokenizer: Callable[[], bytes]
    special: dict[str, str]
    """Control tokens by what they are to transformers: bos_token, eos_token."""
    template: str | None = None
    dtype: torch.dtype = torch.float32


_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_QWEN = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}

FAMILIES = {
    "llama3": Family(
        "Llama",
        {
            "vocab_size": 1280, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                "original_max_position_embeddings": 32, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        },
        made_json_tokenizers.llama3_like, _LLAMA3, made_chats.LLAMA3_TEMPLATE,
    ),
    "llama-tied": Family(
        "Llama", {"vocab_size": 900, "num_key_value_heads": 4, "tie_word_embeddings": True},
        made_json_tokenizers.llama2_like, _LLAMA2,
    ),
    "mistral": Family(
        "Mistral", {"vocab_size": 900, "num_key_value_heads": 1, "sliding_window": 16},
        made_json_tokenizers.llama2_like, _LLAMA2, made_chats.MISTRAL_TEMPLATE,
    ),
    "qwen2": Family(
        "Qwen2",
        {
            "vocab_size": 1280, "num_key_value_heads": 2, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        made_json_tokenizers.qwen_like, _QWEN, made_chats.QWEN2_TEMPLATE,
    ),
    "qwen2-yarn": Family(
        "Qwen2",
        {
            "vocab_size": 1280, "num_key_value_heads": 4, "use_sliding_window": True,
            "sliding_window": 16, "max_window_layers": 0,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        made_json_tokenizers.qwen_like, _QWEN, made_chats.CHATML_TEMPLATE,
    ),
    "qwen3": Family(
        "Qwen3",
        {
            "vocab_size": 1280, "num_key_value_heads": 2, "head_dim": 24,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        made_json_tokenizers.qwen_like, _QWEN, made_chats.CHATML_TEMPLATE, torch.bfloat16,
    ),
}  # fmt: skip

#: Names of bc2's layouts that an original has. Another template is imported as it is.
_LAYOUTS = {
    made_chats.LLAMA3_TEMPLATE: "llama3", made_chats.CHATML_TEMPLATE: "chatml", None: None,
}  # fmt: skip


class OfTransformers(Original):
    """A model that transformers made and runs."""

    tokenizer_file = "tokenizer.json"

    def __init__(self, family: Family, seed: int = 0):
        self.family = family
        self.model = _drawn(family, seed)
        self.state = self.model.state_dict()
        self.vocab_size = self.model.config.vocab_size
        self.layout = _LAYOUTS.get(family.template, "jinja")
        if self.model.config.tie_word_embeddings:
            del self.state["lm_head.weight"]

    def write(self, folder: Path, kind: Kind = "safetensors", shards: int = 1) -> None:
        folder.mkdir(parents=True)
        if kind == "safetensors":
            self._save(folder, shards)
        else:
            self.model.config.save_pretrained(folder)
            self.model.generation_config.save_pretrained(folder)
            # A tied head is there a second time, as in files of torch it is.
            write_weights(folder, self.model.state_dict(), kind, shards)
        (folder / "tokenizer.json").write_bytes(self.family.tokenizer())
        special = dict(self.family.special)
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
        if self.family.template is not None:
            special["chat_template"] = self.family.template
        special["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "tokenizer_config.json").write_text(json.dumps(special))

    def _save(self, folder: Path, shards: int) -> None:
        total = sum(tensor.nbytes for tensor in self.state.values())
        self.model.save_pretrained(folder, max_shard_size=total // shards + 1)
        found = list(folder.glob("model*.safetensors"))
        assert (len(found) > 1) == (shards > 1), found

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        found: Tensor = self._wide(torch.tensor([ids])).logits[0]
        return found

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        settings = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=count, pad_token_id=0,
            eos_token_id=self.vocab_size,  # None would be the model's own
        )  # fmt: skip
        given = torch.tensor([ids])
        said = self._wide.generate(
            given, attention_mask=torch.ones_like(given), generation_config=settings
        )
        found: list[int] = said[0, len(ids) :].tolist()
        return found

    @property
    def _wide(self) -> Any:
        """In fp32, which it is compared in."""
        if self.family.dtype == torch.float32:
            return self.model
        wide = type(self.model)(self.model.config).float()
        wide.load_state_dict(self.model.state_dict())
        return wide.eval()


class OfBaichuan(Original):
    """A model in the layout of its release, which `baichuan_reference` runs."""

    tokenizer_file = "tokenizer.model"

    def __init__(self, name: str, seed: int = 0):
        self.release = made_baichuan.RELEASES[name]
        self.state = made_baichuan.drawn(self.release, seed)
        self._wide = {name: tensor.double() for name, tensor in self.state.items()}
        self.vocab_size = self.release.config["vocab_size"]
        self.layout = "baichuan" if self.release.chat else None

    def write(self, folder: Path, kind: Kind = "bin", shards: int = 1) -> None:
        made_baichuan.write(folder, self.release, self.state, kind, shards)

    def logits(self, ids: Sequence[int]) -> Tensor:
        return baichuan_reference.logits(self.release.config, self._wide, ids)

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        text = list(ids)
        for _ in range(count):
            said = baichuan_reference.logits(self.release.config, self._wide, text, last=1)
            text.append(int(said.argmax()))
        return text[len(ids) :]


NAMES = [*FAMILIES, *made_baichuan.RELEASES]


@cache
def original(name: str) -> Original:
    """A model of `NAMES`, the same in every call."""
    return OfTransformers(FAMILIES[name]) if name in FAMILIES else OfBaichuan(name)


def _drawn(family: Family, seed: int) -> Any:
    config = getattr(transformers, f"{family.name}Config")(
        **{
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": WINDOW, "bos_token_id": None,
            "eos_token_id": _eos(family), "tie_word_embeddings": False,
            "attn_implementation": "sdpa",  # "eager" has its softmax in fp32
            "dtype": family.dtype,
        }
        | family.settings
    )  # fmt: skip
    model = getattr(transformers, f"{family.name}ForCausalLM")(config).eval()
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if (
                weight.dim() == 1
            ):  # of norms, all ones, and biases, all zeros, nothing could be said
                weight.uniform_(*((-0.5, 0.5) if "bias" in name else (0.5, 1.5)), generator=chance)
            else:
                weight.normal_(std=0.1 if "embed" in name else 0.25, generator=chance)
    return model.to(family.dtype)


def _eos(family: Family) -> int:
    added = json.loads(family.tokenizer())["added_tokens"]
    return int(next(one["id"] for one in added if one["content"] == family.special["eos_token"]))
