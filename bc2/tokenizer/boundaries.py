"""Places where a text can be cut so that its parts are encoded as they are in the whole.

A boundary between two characters is safe if no piece of the vocabulary contains them side by
side: then ``encode(a + b) == encode(a) + encode(b)``.

- BPE merges two neighbours only into a piece of the vocabulary, so it never merges across a safe
  boundary, and user-defined symbols, which are matched first, never cross one. What is merged on
  one side neither needs nor changes the other: merges are ordered by their score, then from left
  to right, and that order is the same among those of one side.
- Characters without a piece become their bytes, each by itself. Control, unknown and byte pieces
  are never matched with text. `Tokenizer` encodes U+2581 and lone surrogates apart.
- Without normalisation (`Tokenizer.exact`) each character is replaced by itself, a space by
  U+2581, and nothing is added at the beginning or the end.

No boundary is safe in other models:

- Unigram: among segmentations of equal score, such as ")" "))" and "))" ")", the rounding of the
  scores' sum from the beginning of the text decides, in fp32. About one text of 5,000 characters
  in 30 is segmented differently when it is cut.
- BPE with unused pieces of several characters: SentencePiece splits one as it was merged last
  anywhere in the text.
- Models that are not exact, since they change the beginning of a text or neighbours.
- Files of the tokenizers library (``tokenizer.json``), which cut the text by expressions that look
  around before they match pieces.
"""

from __future__ import annotations

from bc2.tokenizer.layout import SPACE_MARK
from bc2.tokenizer.protobuf import message_fields
from bc2.tokenizer.tokenizer import Tokenizer

# Fields of SentencePiece's ModelProto and TrainerSpec, and the value for BPE.
_TRAINER_SPEC = 2
_MODEL_TYPE = 3
_BPE = 2


class Boundaries:
    """The safe boundaries of texts under a tokenizer.

    Attributes:
        exist: whether this tokenizer has safe boundaries inside of texts.
    """

    def __init__(self, tokenizer: Tokenizer):
        pieces = _matched_pieces(tokenizer)
        self.exist = pieces is not None
        #: Two characters that some piece has side by side.
        self._inside = {
            piece[at : at + 2] for piece in pieces or () for at in range(len(piece) - 1)
        }

    def is_safe(self, text: str, place: int) -> bool:
        """Whether ``text[:place]`` and ``text[place:]`` may be encoded apart."""
        if place <= 0 or place >= len(text):
            return True
        return self.exist and text[place - 1 : place + 1] not in self._inside

    def last(self, text: str, end: int) -> int:
        """The last safe place of a text up to `end`; the beginning of the text is one."""
        if not self.exist and end < len(text):
            return 0
        while not self.is_safe(text, end):
            end -= 1
        return end


def _matched_pieces(tokenizer: Tokenizer) -> list[str] | None:
    """The pieces that text is matched with, spaces as in texts; None if no boundary is safe."""
    matched = tokenizer.matched_pieces()
    if matched is None or not tokenizer.exact or not _is_bpe(tokenizer.model):
        return None
    pieces = list(matched)
    if any(unused and len(piece) > 1 for piece, unused in pieces):
        return None
    return [piece.replace(SPACE_MARK, " ") for piece, _ in pieces]


def _is_bpe(model: bytes) -> bool:
    """Whether a serialized model segments by byte-pair encoding."""
    for number, value in message_fields(model):
        if number == _TRAINER_SPEC and isinstance(value, bytes):
            return dict(message_fields(value)).get(_MODEL_TYPE) == _BPE
    return False
