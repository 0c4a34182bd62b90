"""Answers of a model to where they are wanted, each as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bc2.console import Output, check_output, emit_line, note
from bc2.errors import Bc2Error, Interrupted
from bc2.process.signals import signal_of
from bc2.report.continuations import answer_row, shown_answer, text_of
from bc2.report.result_file import ResultFile

if TYPE_CHECKING:
    from bc2.generate.load import LanguageModel
    from bc2.generate.requests import Generated


def deliver(
    answers: Iterator[Generated],
    loaded: LanguageModel,
    output: Output,
    *,
    jsonl: bool = False,
    results: ResultFile | None = None,
) -> None:
    """Write answers to `PromptRequest`s; where it ends early, say how many were written.

    Args:
        output: of the texts, as they come, or of one JSON object at the end.
        jsonl: print JSON lines instead, as they come.
        results: write JSON lines there instead, and print where they are.
    """
    counted = _Counted(answers)
    try:
        if results is not None:
            _to_file(counted, loaded, output, results)
        elif jsonl:
            for answer in counted:
                emit_line(answer_row(answer, loaded.tokenizer))
        elif output.format == "json":
            rows = [answer_row(answer, loaded.tokenizer) for answer in answers]
            output.emit({"model": loaded.artifact.ref, "results": rows})
        else:
            _to_texts(counted, loaded, output)
    except KeyboardInterrupt as stop:
        told = _told(counted, results)
        raise Interrupted(f"interrupted; {told}", signum=signal_of(stop)) from None
    except (Bc2Error, OSError):
        if counted.taken:
            note(_told(counted, results))
        raise


@dataclass
class _Counted:
    """Answers that are written before the next one is taken."""

    answers: Iterator[Generated]
    taken: int = 0
    written: int = 0

    def __iter__(self) -> Iterator[Generated]:
        for answer in self.answers:
            self.taken += 1
            yield answer
            self.written += 1


def _told(counted: _Counted, results: ResultFile | None) -> str:
    where = f" to {results.partial}" if results is not None and counted.taken else ""
    # Where writing was interrupted, it may have been done already.
    least = "at least " if counted.taken > counted.written else ""
    return f"answers written{where}: {least}{counted.written:,}"


def _to_file(
    answers: Iterable[Generated], loaded: LanguageModel, output: Output, results: ResultFile
) -> None:
    with results:
        for answer in answers:
            results.write(answer_row(answer, loaded.tokenizer))
    path = str(results.path)
    about = {"model": loaded.artifact.ref, "out": path, "answers": results.written}
    said = f"answers written to {path}: {results.written:,}"
    output.emit(about, table=said, quiet=[path], kept=True)


def _to_texts(answers: Iterable[Generated], loaded: LanguageModel, output: Output) -> None:
    for answer in answers:
        if output.format == "quiet":
            output.emit(None, quiet=[text_of(made) for made in answer.continuations])
        else:
            for part in shown_answer(answer, loaded.tokenizer):
                output.emit(None, table=part)
        check_output()
