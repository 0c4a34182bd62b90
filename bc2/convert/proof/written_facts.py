"""Whether what lies beside the weights says the same model: its shape, ends and sampling.

No program's numbers show all of it: transformers reads one of the two spellings of RoPE's base, and
what a proof has generated is not ended by any token. So it is read back as an import would read it,
and of a GGUF file out of its header.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.convert.families import family_of
from bc2.convert.hf_config import HfConfig
from bc2.convert.importing.model_folder import CONFIG, ModelFolder
from bc2.convert.importing.speech import read_speech
from bc2.convert.proof.written_tensors import gguf_facts
from bc2.errors import DataError
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.generate.model_settings import own_end_ids
from bc2.model.model_config import ModelConfig

_GENERATION = "generation_config.json"

#: Keys of GGUF's for tokens that end an answer.
_GGUF_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def check_facts(folder: Path, source: SourceModel, plan: ExportPlan) -> list[str]:
    """What the other files of a folder say otherwise than the checkpoint."""
    if plan.prover == "llama.cpp":
        return [
            problem
            for name in plan.sizes
            for problem in _gguf_problems(gguf_facts(folder / name), source)
        ]
    if plan.prover != "transformers":
        return []
    try:
        return list(_problems(ModelFolder(folder), source, plan))
    except DataError as error:
        return [f"what lies beside the weights cannot be read back: {error}"]


def _problems(folder: ModelFolder, source: SourceModel, plan: ExportPlan) -> Iterator[str]:
    data = folder.json(CONFIG)
    config = HfConfig(data, CONFIG)
    there, here = family_of(config).model(config), _written_shape(source.config, plan)
    found, wanted = there.model_dump(), here.model_dump()
    for name, value in wanted.items():
        if found[name] != value:
            yield f"{CONFIG} says {name} = {found[name]}, and the model has {value}"
    ends = _ends(source)
    for file, said in ((CONFIG, data), (_GENERATION, folder.optional_json(_GENERATION))):
        if "eos_token_id" in said and _ids(said["eos_token_id"]) != ends:
            yield f"{file} ends answers at {said['eos_token_id']}, and ours end at {sorted(ends)}"
    speech = read_speech(folder, there, plan.format, None)
    own = own_end_ids(speech.tokenizer, speech.chat, speech.defaults, source.artifact)
    if set(own) != ends:
        yield f"answers end at {sorted(own)} there, and ours at {sorted(ends)}"
    kept = speech.defaults.sampling()
    if kept != _sampling(source.generation, here):
        yield f"{_GENERATION} draws with {kept}, and the model wants {source.generation.sampling()}"


def _written_shape(config: ModelConfig, plan: ExportPlan) -> ModelConfig:
    """The shape of what is written: a folded NormHead is a plain head, and has its own rows."""
    data = config.model_dump()
    if plan.format == "baichuan":
        data["tied"] = False
    elif config.norm_head:
        data |= {"norm_head": False, "tied": False}
    return ModelConfig.model_validate(data)


def _ends(source: SourceModel) -> set[int]:
    return set(own_end_ids(source.tokenizer, source.chat, source.generation, source.artifact))


def _ids(said: Any) -> set[int]:
    if said is None:
        return set()
    return set(said) if isinstance(said, list) else {said}


def _sampling(own: GenerationDefaults, config: ModelConfig) -> dict[str, Any]:
    """As an import keeps it: nothing that leaves no room in the window, greedy as greedy."""
    found = own.sampling()
    if found.get("max_new_tokens", 0) >= config.context_length:
        del found["max_new_tokens"]
    if found.get("temperature") == 0:
        for name in ("top_k", "top_p", "min_p"):
            found.pop(name, None)
    return found


def _gguf_problems(facts: Mapping[str, Any], source: SourceModel) -> Iterator[str]:
    """Three ends at most have a place in a GGUF file."""
    said = {facts[key] for name in _GGUF_ENDS if (key := f"tokenizer.ggml.{name}") in facts}
    ends = _ends(source)
    if not said <= ends or len(said) < min(len(ends), len(_GGUF_ENDS)):
        yield f"the file ends answers at {sorted(said)}, and ours end at {sorted(ends)}"
    for key, right in _gguf_words(source, facts["general.architecture"]).items():
        there = facts.get(key, -1)
        if there != right and not (isinstance(right, float) and _is_rounded(there, right)):
            yield f"{key} is {there:.6g}, and the model has {right:.6g}"
    begins = source.tokenizer.begin_ids
    puts = facts.get("tokenizer.ggml.add_bos_token", False)
    if puts is not (len(begins) == 1):
        yield f"the file puts {'a' if puts else 'no'} token before a text, and ours {len(begins)}"


def _is_rounded(there: float, right: float) -> bool:
    """Whether a number is what fp32 makes of another."""
    return bool(np.float32(there) == np.float32(right))


def _gguf_words(source: SourceModel, architecture: str) -> dict[str, float]:
    """Keys with what they are to say; -1 where a token is none."""
    config, tokenizer = source.config, source.tokenizer
    found = {
        f"{architecture}.context_length": min(
            config.context_length, config.sliding_window or config.context_length
        ),
        f"{architecture}.attention.layer_norm_rms_epsilon": config.norm_eps,
        "tokenizer.ggml.bos_token_id": (*tokenizer.begin_ids, tokenizer.bos_id)[0],
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.unknown_token_id": tokenizer.unk_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
    }
    if config.position == "rope":
        found[f"{architecture}.rope.freq_base"] = config.rope_base
    return found
