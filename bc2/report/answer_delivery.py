"""Answers of a model to where they are wanted, each as soon as it is there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bc2.console import Output, emit_line, note
from bc2.errors import Bc2Error, Interrupted
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
    written = 0
    try:
        if results is not None:
            delivered = _to_file(answers, loaded, output, results)
        elif jsonl:
            delivered = _to_lines(answers, loaded)
        elif output.format == "json":
            delivered = _to_object(answers, loaded, output)
        else:
            delivered = _to_texts(answers, loaded, output)
        for _ in delivered:
            written += 1
    except KeyboardInterrupt as stop:
        if type(stop) is not KeyboardInterrupt:  # a signal that the command line tells of
            note(_told(written, results))
            raise
        said = f"interrupted; {_told(written, results)}"
        raise Interrupted(said, signum=signal.SIGINT) from None
    except Bc2Error:
        if written:
            note(_told(written, results))
        raise


def _told(written: int, results: ResultFile | None) -> str:
    where = f" to {results.partial}" if results is not None and written else ""
    return f"answers written{where}: {written:,}"


# Each yields once for each answer that has been written.


def _to_file(
    answers: Iterator[Generated], loaded: LanguageModel, output: Output, results: ResultFile
) -> Iterator[None]:
    with results:
        for answer in answers:
            results.write(answer_row(answer, loaded.tokenizer))
            yield
    path = str(results.path)
    about = {"model": loaded.artifact.ref, "out": path, "answers": results.written}
    output.emit(about, table=f"answers written to {path}: {results.written:,}", quiet=[path])


def _to_lines(answers: Iterator[Generated], loaded: LanguageModel) -> Iterator[None]:
    for answer in answers:
        emit_line(answer_row(answer, loaded.tokenizer))
        yield


def _to_object(
    answers: Iterator[Generated], loaded: LanguageModel, output: Output
) -> Iterator[None]:
    rows = [answer_row(answer, loaded.tokenizer) for answer in answers]
    output.emit({"model": loaded.artifact.ref, "results": rows})
    yield from (None for _ in rows)


def _to_texts(
    answers: Iterator[Generated], loaded: LanguageModel, output: Output
) -> Iterator[None]:
    for answer in answers:
        if output.format == "quiet":
            output.emit(None, quiet=[text_of(made) for made in answer.continuations])
        else:
            for part in shown_answer(answer, loaded.tokenizer):
                output.emit(None, table=part)
        yield
