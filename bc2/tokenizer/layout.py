"""Which id means what, in every tokenizer that bc2 trains.

====================  =========================================================
0 1 2                 ``<unk>`` ``<s>`` ``</s>``; padding is 0 by convention
3 ... 88              ``<control_0>`` ... ``<control_85>``, spare
89 ... 196            ``<reserved_0>`` ... ``<reserved_107>``
197 ... 452           the 256 bytes, ``<0x00>`` ... ``<0xFF>``
453 ...               the learned pieces, then the single characters
====================  =========================================================

Baichuan 2 marks a user's turn by id 195, ``<reserved_106>``, and the assistant's by
196, ``<reserved_107>`` (issue 239 of its repository). What it has below
``<reserved_0>`` is not published; the fillers there are our choice. All of them are
*control* pieces: no text encodes to one, so no user can type a turn marker.
"""

from __future__ import annotations

UNK_ID = 0
BOS_ID = 1
EOS_ID = 2
PAD_ID = 0
USER_ID = 195
ASSISTANT_ID = 196

_FIRST_RESERVED = USER_ID - 106
_FIRST_CONTROL = EOS_ID + 1

#: In the order of their ids, from 3 on.
CONTROL_PIECES: tuple[str, ...] = (
    *(f"<control_{n}>" for n in range(_FIRST_RESERVED - _FIRST_CONTROL)),
    *(f"<reserved_{n}>" for n in range(108)),
)

#: Ids that any vocabulary spends before its first character.
FIXED_PIECES = _FIRST_CONTROL + len(CONTROL_PIECES) + 256

#: SentencePiece writes a space like this inside pieces, and reads it as a space in text.
SPACE_MARK = "\u2581"
