"""A run's TensorBoard files: scalars by step, each step once however often the run went back.

    tensorboard/events.out.tfevents.NUMBER.HOST

Readers take the files in the order of their names. Each attempt, and each rollback, has a file
of its own, whose number is above those before it, also if the clock was set back. What went past
the step it begins at is cut off the files before it, so that every reader of events finds each
step once; and its first event says so (``SessionLog.START``), so that a TensorBoard that has read
them already drops it. A file that was cut is never written to again: a reader that is past its
end finds the next file.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

_PREFIX = "events.out.tfevents."

#: A record: the length of an event and that number's checksum, the event, the event's checksum.
_HEAD = struct.Struct("<QI")
_TAIL = 4


class EventFile:
    """The newest event file of a folder, made when a run starts or goes back to a step.

    Args:
        step: the last step that the run keeps; -1 to begin anew.
        without: tags that have no value at `step` yet, if they were written before.
    """

    def __init__(self, folder: Path, step: int, *, without: Collection[str] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        earlier = event_files(folder)
        for path in earlier:
            _cut(path, step, without)
        taken = [_number(path) for path in earlier]
        number = max([int(time.time()), *(last + 1 for last in taken)])
        path = folder / f"{_PREFIX}{number:010d}.{socket.gethostname()}"
        self._records = RecordWriter(path.open("xb"))
        source = SourceMetadata(writer="bc2")
        self._write(Event(file_version="brain.Event:2", source_metadata=source))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=step + 1))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append scalars. Raises: OSError."""
        values = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        # Readers see it at once, nothing is lost by a kill, and an error is raised where it is.
        self._records.flush()


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder, in the order that readers take them."""
    return sorted(folder.glob(f"{_PREFIX}*"))


def _number(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX).partition(".")[0]
    return int(digits) if digits.isdecimal() else 0


def _cut(path: Path, step: int, without: Collection[str]) -> None:
    """Remove from a file what is behind a step, and a record that a crash left unfinished.

    Steps only rise within a file, so this is all from one place on.
    """
    with path.open("r+b") as stream:
        end = 0
        for event, after in _events(stream):
            late = event.step > step
            again = event.step == step and any(v.tag in without for v in event.summary.value)
            if event.HasField("summary") and (late or again):
                break
            end = after
        if end < os.fstat(stream.fileno()).st_size:
            stream.truncate(end)


def _events(stream: BinaryIO) -> Iterator[tuple[Event, int]]:
    """The events of a file up to one that is not whole, each with the place behind it."""
    end = 0
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        length, checksum = _HEAD.unpack(head)
        if checksum != masked_crc32c(head[:8]):
            return  # zeros, of a disk that lost power
        body = stream.read(length + _TAIL)
        if len(body) < length + _TAIL:
            return
        try:
            event = Event.FromString(body[:length])
        except DecodeError:
            return
        end += len(head) + len(body)
        yield event, end
