"""`bc2 convert --to gguf`: everything that is known of the file before it is written."""

from __future__ import annotations

from gguf import GGUFWriter

from bc2.convert.exporting.gguf.architecture import Architecture, add_shape, architecture_of
from bc2.convert.exporting.gguf.tensors import gguf_tensors
from bc2.convert.exporting.gguf.vocabulary import add_vocabulary, vocabulary_of
from bc2.convert.exporting.gguf.write_gguf import GgufFile
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import Dtype, ExportPlan, Reader

#: The one file.
FILE = "model.gguf"

#: Names that make llama.cpp strip the spaces behind control tokens, whatever the model is.
_NAMES_WITH_MEANING = ("phi-3", "phi3", "modern-bert")


def plan_gguf(source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
    """The plan of one GGUF file.

    Args:
        dtype: of matrices; None: the one that they are stored in.
        limit: not looked at: llama.cpp wants a model in one file.

    Raises:
        UsageError: llama.cpp computes no such model, or does not encode as its tokenizer.
    """
    architecture = architecture_of(source.config)
    dtype = dtype or source.dtype
    tensors = gguf_tensors(source.config, architecture, dtype)
    vocabulary = vocabulary_of(source)
    writer = GGUFWriter(None, architecture.name)
    _add_general(writer, source, dtype)
    add_shape(writer, source.config, architecture)
    told = add_vocabulary(writer, source, vocabulary)
    file = GgufFile(writer, architecture.tables)
    _, size = file.layout(tensors)
    kept = sorted({t.name.split(".")[-2] for t in tensors if t.dtype == "F16"})
    if dtype == "q8_0" and kept:
        told.append(f"{', '.join(kept)}: rows of no whole blocks of 32 are fp16, not q8_0")
    return ExportPlan(
        format="gguf",
        dtype=dtype,
        tensors=tensors,
        sizes={FILE: size},
        write=file.write,
        limit=limit,
        notes=(*architecture.notes, *vocabulary.notes, *told),
        readers=_readers(architecture),
        prover="llama.cpp",
    )


def _readers(architecture: Architecture) -> tuple[Reader, ...]:
    needs = f"as {architecture.name}"
    return (
        Reader("llama.cpp", True, needs),
        Reader("what is built on it (Ollama, LM Studio)", True, needs),
        Reader("transformers", False, "convert to llama or baichuan"),
        Reader("vLLM", False, "convert to llama"),
    )


def _add_general(writer: GGUFWriter, source: SourceModel, dtype: Dtype) -> None:
    """What the file is, what it was made of, and how the model wants to be sampled."""
    artifact = source.artifact
    writer.add_type("model")
    if not any(name in artifact.name.lower() for name in _NAMES_WITH_MEANING):
        writer.add_name(artifact.name)
    writer.add_description(f"bc2's {artifact.title}, {artifact.digest}")
    if dtype == "q8_0":
        writer.add_quantization_version(2)
    writer.add_string("bc2.artifact", artifact.digest)
    writer.add_string("bc2.title", artifact.title)
    writer.add_string("bc2.tokenizer", source.tokenizer.digest)
    writer.add_array("bc2.parents", artifact.parents)
    wanted = source.generation.sampling()
    for name, add in (
        ("temperature", writer.add_sampling_temp),
        ("top_k", writer.add_sampling_top_k),
        ("top_p", writer.add_sampling_top_p),
        ("min_p", writer.add_sampling_min_p),
        ("repetition_penalty", writer.add_sampling_penalty_repeat),
    ):
        if name in wanted:
            add(wanted[name])
