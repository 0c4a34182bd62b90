"""A tokenizer as the vocabulary of a GGUF file, and where llama.cpp encodes otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gguf import GGUFWriter, TokenType

from bc2.convert.exporting.source_model import SourceModel
from bc2.errors import UsageError
from bc2.tokenizer.tokenizer_files import JSON_FILE


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    model: str
    """How llama.cpp encodes: ``llama`` merges by scores, ``gpt2`` by a list of merges."""
    pre: str
    """By what llama.cpp cuts text before it encodes it, as it names it."""
    pieces: Sequence[str]
    """By id. All differ."""
    types: Sequence[int]
    """By id, those of `TokenType`."""
    scores: Sequence[float] | None = None
    merges: Sequence[str] = ()
    space_prefix: bool = False
    """Whether a space is put before each text."""
    notes: Sequence[str] = field(default=())
    """Sentences on texts that llama.cpp encodes otherwise."""


def vocabulary_of(source: SourceModel) -> Vocabulary:
    """The vocabulary of a checkpoint, with a piece for each row of its embedding.

    Raises:
        UsageError: llama.cpp does not encode as this tokenizer does.
    """
    markers = source.chat.markers if source.chat else frozenset()
    rows = source.config.vocab_size
    if source.tokenizer.vocab_size > rows:
        raise UsageError(
            f"the tokenizer has {source.tokenizer.vocab_size:,} pieces, the model {rows:,} rows",
            todo="convert to another format: --to safetensors",
        )
    if source.tokenizer.file_name == JSON_FILE:
        from bc2.convert.exporting.gguf.json_vocabulary import json_vocabulary

        return json_vocabulary(source.tokenizer, rows, markers)
    from bc2.convert.exporting.gguf.sentencepiece_vocabulary import sentencepiece_vocabulary

    return sentencepiece_vocabulary(source.tokenizer, rows, markers)


def padded(pieces: Sequence[str | None], rows: int) -> list[str]:
    """A piece for each row of the embedding: llama.cpp wants as many, and all different."""
    known = set(pieces)
    found = []
    for number in range(rows):
        piece = pieces[number] if number < len(pieces) else None
        if piece is None:
            piece = f"[PAD{number}]"
            while piece in known:
                piece = f"[{piece}]"
        found.append(piece)
    return found


def add_vocabulary(writer: GGUFWriter, source: SourceModel, vocabulary: Vocabulary) -> list[str]:
    """The metadata of a tokenizer and its chat template; what llama.cpp cannot be told of them."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.pieces)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    writer.add_remove_extra_whitespaces(False)
    notes = _add_special(writer, source)
    if source.chat is not None:
        writer.add_chat_template(source.chat.template)
    return notes


def _add_special(writer: GGUFWriter, source: SourceModel) -> list[str]:
    """Which ids begin, end and pad texts."""
    tokenizer, notes = source.tokenizer, []
    begins = tokenizer.begin_ids
    bos = begins[0] if begins else tokenizer.bos_id
    ends = tokenizer.eos_id
    for add, token in (
        (writer.add_bos_token_id, bos),
        (writer.add_eos_token_id, ends),
        (writer.add_unk_token_id, tokenizer.unk_id),
        (writer.add_pad_token_id, tokenizer.pad_id),
    ):
        if token >= 0:
            add(token)
    writer.add_add_bos_token(len(begins) == 1)
    writer.add_add_eos_token(False)
    if len(begins) > 1:
        notes.append(
            f"llama.cpp puts one token before a text, and this tokenizer {len(begins)}: put ids "
            f"{', '.join(map(str, begins))} there yourself"
        )
    others = _other_ends(source)
    for add, token in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        add(token)
    if len(others) > 2:
        left = ", ".join(map(repr, map(tokenizer.piece_of, others[2:])))
        notes.append(f"llama.cpp is told of three tokens that end an answer, and not of {left}")
    return notes


def _other_ends(source: SourceModel) -> list[int]:
    """Ids that end an answer, beside the end of text."""
    chat = source.chat.end_ids if source.chat else ()
    ends = dict.fromkeys((*chat, *source.generation.end_ids))
    return [end for end in ends if end != source.tokenizer.eos_id and source.tokenizer.has(end)]


def typed_pieces(pieces: Sequence[str], types: Sequence[int]) -> list[str]:
    """Control and byte pieces that llama.cpp's merges make of text which spells them.

    Its merges look for any piece, also those that no text is encoded to.
    """
    known: Mapping[str, int] = {piece: number for number, piece in enumerate(pieces)}
    special = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)

    def made(part: str) -> bool:
        return len(part) == 1 or part in known

    return [
        piece
        for piece, kind in zip(pieces, types, strict=True)
        if kind in special
        and any(made(piece[:at]) and made(piece[at:]) for at in range(1, len(piece)))
    ]


def some(names: Sequence[str]) -> str:
    """The first of some pieces, for people."""
    return ", ".join(map(repr, names[:3])) + (" ..." if len(names) > 3 else "")
