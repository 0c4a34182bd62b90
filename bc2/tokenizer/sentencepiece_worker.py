"""The process that SentencePiece trains in; started by `bc2.tokenizer.train`.

SentencePiece holds its whole sample, logs to stderr from C++ and ignores Ctrl-C until
it is done. In a process of its own it can be stopped, may run out of memory or abort,
and keeps its log apart from ours.

stdin: one line of JSON (keyword arguments of `SentencePieceTrainer.train`), then items
as a 4-byte little-endian length and UTF-8 bytes, then a length of 0. The parent keeps
stdin open until it has the model: end of file means that the parent is gone.
stdout: the serialized model.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

LENGTH = struct.Struct("<I")

#: Begins the line of stderr that carries the trainer's own error message.
ERROR_MARK = "bc2-trainer-error: "


def items(stream: BinaryIO) -> Iterator[bytes]:
    """The items of the sample, up to the zero that ends them."""
    while size := LENGTH.unpack(_exactly(stream, LENGTH.size))[0]:
        yield _exactly(stream, size)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        os._exit(1)  # the parent died: nobody waits for this model
    return data


def _exit_with_parent(stream: BinaryIO) -> None:
    if not stream.read(1):
        os._exit(1)


def _watched(stream: BinaryIO) -> Iterator[bytes]:
    yield from items(stream)
    threading.Thread(target=_exit_with_parent, args=(stream,), daemon=True).start()


def main() -> None:
    import sentencepiece

    options = json.loads(sys.stdin.buffer.readline())
    model = io.BytesIO()
    code = 0
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_watched(sys.stdin.buffer), model_writer=model, **options
        )
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(ERROR_MARK + reason, file=sys.stderr, flush=True)
        code = 1
    sys.stdout.buffer.write(model.getvalue())
    sys.stdout.buffer.flush()
    # At once: the interpreter's own exit would wait for the thread that reads stdin.
    os._exit(code)


if __name__ == "__main__":
    main()
