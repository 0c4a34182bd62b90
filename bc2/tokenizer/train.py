"""Training a SentencePiece BPE model as Baichuan 2 describes (arXiv 2309.10305 §2.3).

No normalisation, no dummy prefix, digits split, whitespace-only pieces for code,
byte fallback, character coverage 0.9999, pieces of up to 32 characters.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bc2.errors import Bc2Error, DataError, RecipeError, ResourceError, RunFailed
from bc2.process.signals import shielded
from bc2.tokenizer import layout, sentencepiece_worker
from bc2.tokenizer.round_trip import lost_sentence
from bc2.tokenizer.sample import MAX_ITEM_BYTES, Sample
from bc2.tokenizer.sentencepiece_worker import ERROR_MARK, LENGTH
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import (
    LEAST_COVERAGE,
    LEAST_PIECES,
    MOST_PIECES,
    TokenizerConfig,
)

#: ``progress(advance, detail)``: bytes read into the trainer, then details of the merging.
ReportProgress = Callable[[float, str], None]

_POLL_S = 0.1


@dataclass(frozen=True)
class Trained:
    """A serialized SentencePiece model, and what it was trained on (JSON data)."""

    model: bytes
    facts: dict[str, Any]


def train(
    texts: Iterable[str], config: TokenizerConfig, *, progress: ReportProgress | None = None
) -> Trained:
    """Train a tokenizer on texts, up to ``config.sample_bytes`` of them.

    The model is a function of the texts and the settings alone.

    Args:
        texts: documents, already sampled and weighted; read once, not held here.
        progress: told of every item read (bytes) and of merges (detail only).

    Raises:
        DataError: no text, or the trainer used less than ``config.min_used_fraction``.
        RecipeError: ``vocab_size`` is below the characters required or above what the
            texts can fill; both numbers are in the message.
        ResourceError: the trainer ran out of memory.
        RunFailed: the trainer failed otherwise; the tail of its log is in the message. Or its
            model does not give every text back.
    """
    report = progress or _silent
    sample = Sample(config.sample_bytes)
    with _trainer(options(config)) as trainer:
        try:
            for item in sample.cut(texts):
                trainer.send(item)
                report(len(item), "")
            _check_any(sample)
            trainer.finish(lambda merges: report(0, f"{merges:,} pieces learned"))
        except BrokenPipeError:
            trainer.wait()
        log = trainer.log()
        if trainer.process.returncode != 0:
            raise _failure(log, trainer.process.returncode, config)
        model = trainer.model()
    facts = {**sample.facts(), **_facts(log), "vocab_size": config.vocab_size}
    _check_used(sample, facts["items_loaded"], config)
    _check_exact(model)
    return Trained(model, facts)


def options(config: TokenizerConfig) -> dict[str, Any]:
    """The keyword arguments of SentencePiece's trainer.

    ``pad_id`` is -1 because SentencePiece cannot give padding and unknown one id; space,
    newline and tab are required because rare ones would fall outside the coverage (the
    trainer does not even count tabs), and without its piece a space would come back as
    U+2581. The number of threads is left at SentencePiece's default:
    it hardly matters to the speed of BPE, yet it would be written into the model.
    """
    return {
        "model_type": "bpe",
        "vocab_size": config.vocab_size,
        "character_coverage": config.character_coverage,
        "max_sentencepiece_length": config.max_piece_length,
        "max_sentence_length": MAX_ITEM_BYTES,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "byte_fallback": True,
        "required_chars": f"\n\t{layout.SPACE_MARK}",
        "unk_id": layout.UNK_ID,
        "bos_id": layout.BOS_ID,
        "eos_id": layout.EOS_ID,
        "pad_id": -1,
        "control_symbols": list(layout.CONTROL_PIECES),
    }


@dataclass
class _Trainer:
    """The worker process, its input, and the files that its output and log go to."""

    process: subprocess.Popen[bytes]
    output: BinaryIO
    errors: BinaryIO

    @property
    def input(self) -> BinaryIO:
        assert self.process.stdin is not None
        return self.process.stdin  # type: ignore[return-value]

    def send(self, item: bytes) -> None:
        self.input.write(LENGTH.pack(len(item)) + item)

    def finish(self, merged: Callable[[int], None]) -> None:
        """Say that the sample is complete, and wait for the model."""
        self.input.write(LENGTH.pack(0))
        self.input.flush()
        position = 0
        done = False
        while not done:
            done = self.wait(_POLL_S)
            fresh = os.pread(self.errors.fileno(), 1 << 20, position)
            position += len(fresh)
            if merges := re.findall(rb"merges=(\d+)", fresh):
                merged(int(merges[-1]))

    def wait(self, timeout_s: float | None = None) -> bool:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def log(self) -> str:
        return _contents(self.errors).decode("utf-8", "replace")

    def model(self) -> bytes:
        return _contents(self.output)


def _contents(stream: BinaryIO) -> bytes:
    # The worker shares the file's position, so look from the start.
    stream.seek(0)
    return stream.read()


@contextmanager
def _trainer(arguments: dict[str, Any]) -> Iterator[_Trainer]:
    worker = str(Path(sentencepiece_worker.__file__))
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        with shielded():  # this process alone follows signals
            process = subprocess.Popen(
                [sys.executable, "-P", worker],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
            )
        try:
            trainer = _Trainer(process, output, errors)
            with suppress(BrokenPipeError):  # its log says why; see `train`
                trainer.input.write(json.dumps(arguments).encode() + b"\n")
                trainer.input.flush()
            yield trainer
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                trainer.input.close()


def _silent(advance: float, detail: str) -> None:
    pass


def _check_any(sample: Sample) -> None:
    if sample.items:
        return
    raise DataError(
        "no text to train a tokenizer on",
        todo="check the corpus, the weights and sample_bytes",
    )


def _check_used(sample: Sample, loaded: int, config: TokenizerConfig) -> None:
    """Fail unless the trainer used nearly everything: it says nothing when it does not."""
    given = sample.used_bytes + sample.untrainable_bytes
    used = sample.used_bytes * loaded // sample.items
    if used < config.min_used_fraction * given:
        raise DataError(
            f"the tokenizer's trainer used {used:,} of {given:,} bytes"
            f" ({loaded:,} of {sample.items:,} items), less than {config.min_used_fraction:.0%}",
            todo="look for binary data in the corpus, or lower tokenizer.min_used_fraction",
        )


def _check_exact(model: bytes) -> None:
    """Fail on a model that does not give every text back, which no setting should make."""
    tokenizer = Tokenizer(model)
    if not tokenizer.exact:
        kinds = tokenizer.lost or ("every text",)
        raise RunFailed(
            f"SentencePiece's trainer made a model that loses text: {lost_sentence(kinds)}",
            todo="use a version of sentencepiece that bc2 was tested with (0.2.3)",
        )


def _facts(log: str) -> dict[str, Any]:
    """What only the trainer knows, from its log."""
    loaded = re.search(r"Loaded all (\d+) sentences", log)
    alphabet = re.search(r"Alphabet size=(\d+)", log)
    coverage = re.search(r"Final character coverage=([\d.e-]+)", log)
    if not (loaded and alphabet and coverage):
        raise RunFailed(
            "cannot tell from SentencePiece's log what its trainer used: " + _tail(log),
            todo="use a version of sentencepiece that bc2 was tested with (0.2.3)",
        )
    skipped = re.search(r"Skipped (\d+) too long", log)
    reserved = log.count("Reserved chars are found. Skipped")
    return {
        "items_loaded": int(loaded[1]),
        "items_skipped": int(skipped[1] if skipped else 0) + reserved,
        "alphabet": int(alphabet[1]),
        "coverage": float(coverage[1]),
    }


def _failure(log: str, code: int, config: TokenizerConfig) -> Bc2Error:
    """The worker's death in our terms."""
    reason = log.partition(ERROR_MARK)[2].strip()
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
        return _vocabulary_too_small(int(needed[1]), config)
    if most := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", reason):
        return _vocabulary_too_large(int(most[1]), config)
    if code == -signal.SIGKILL or "MemoryError" in reason or "bad_alloc" in log:
        return ResourceError(
            f"out of memory while training the tokenizer on {config.sample_bytes:,} bytes",
            todo="lower tokenizer.sample_bytes (the trainer takes about 15 bytes a byte)",
        )
    if "No space left on device" in log:
        return ResourceError("disk full while training the tokenizer", todo="free some space")
    return RunFailed(f"SentencePiece's trainer failed (exit {code}): {reason or _tail(log)}")


def _vocabulary_too_small(needed: int, config: TokenizerConfig) -> RecipeError:
    characters = needed - layout.FIXED_PIECES
    lower = config.character_coverage > LEAST_COVERAGE
    ways = [f"set vocab_size to {needed:,} or more"] if needed <= MOST_PIECES else []
    ways += [f"lower character_coverage (to {LEAST_COVERAGE} at least)"] if lower else []
    return RecipeError(
        f"a vocabulary of {config.vocab_size:,} pieces is too small: this text needs"
        f" {needed:,} ({layout.FIXED_PIECES} control and byte pieces and {characters:,}"
        f" characters at coverage {config.character_coverage})",
        where="tokenizer.vocab_size",
        todo=", or ".join(ways) or "train on text of fewer languages",
    )


def _vocabulary_too_large(most: int, config: TokenizerConfig) -> RecipeError:
    return RecipeError(
        f"a vocabulary of {config.vocab_size:,} pieces is too large: this text fills"
        f" at most {most:,}",
        where="tokenizer.vocab_size",
        todo=f"set vocab_size to {most:,} or less, or train on more text"
        if most >= LEAST_PIECES
        else f"train on more text: no vocabulary has fewer than {LEAST_PIECES} pieces",
    )


def _tail(log: str, lines: int = 5) -> str:
    kept = [line.partition("] ")[2] or line for line in log.splitlines() if line.strip()]
    return " | ".join(kept[-lines:])
