"""A trained scorer of sentences: a linear model over hashed character n-grams.

Every digit counts as 0, and every run of white space as one space. The features of a sentence are
the counts of its n-grams, hashed into 2^bits buckets and divided by the square root of their
number. The score is the probability of "good" by logistic regression (fitted with scikit-learn's
SGD). N-grams of characters need no words, so one model serves Chinese and English. fastText's
classifiers (Joulin et al. 2016), with which CCNet and DeepSeekMath chose text, work like this, but
with an embedding of the features.

NumPy computes the features of many sentences at once. scikit-learn's `HashingVectorizer` computes
such features for one sentence at a time in Python, about ten times slower. Weights are stored as
integers, so that the sum for a sentence does not depend on the other sentences of the batch.

A scorer is a directory with ``weights.safetensors`` and ``scorer.json``, which holds the digest of
the weights.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bc2.data.prep.text.sentences import prose_sentences
from bc2.errors import DataError, IntegrityError
from bc2.files import sha256_file, write_durably

WEIGHTS, FACTS = "weights.safetensors", "scorer.json"
FORMAT, VERSION = "bc2-scorer", 1

#: Lengths of n-grams in characters, and the binary logarithm of the number of buckets.
ORDERS, BITS = (1, 2, 3, 4), 20

#: A weight of 1 as an integer.
_ONE = 1 << 16

#: Characters of a batch: few enough for their arrays to stay in the processor's cache.
_BATCH = 1 << 16

#: Code points below this are folded; those above (rare ideographs, emoji) stay as they are.
_FOLDED = 1 << 16

#: Fewest sentences of each kind that a scorer can be trained on.
_FEWEST = 100

#: Odd multipliers: of the rolling hash of an n-gram, and of a term that makes the hashes of
#: different orders differ.
_FACTOR, _SALT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)

_EPOCHS, _CHUNK, _HELD_OUT = 3, 1 << 14, 10

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]


class Characters(NamedTuple):
    """The code points of several strings, one string after the other."""

    points: UInt32
    """[characters] code points."""
    starts: Int64
    """[strings + 1] where each string begins, and the end of the last."""

    def owners(self) -> Int64:
        """[characters] index of the string of each character."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def characters(strings: Sequence[str]) -> Characters:
    """The code points of strings."""
    starts = np.zeros(len(strings) + 1, dtype=np.int64)
    np.cumsum([len(string) for string in strings], out=starts[1:])
    points = np.frombuffer("".join(strings).encode("utf-32-le"), dtype=np.uint32)
    return Characters(points, starts)


def batches(strings: Sequence[str]) -> Iterator[Sequence[str]]:
    """Divide strings into runs of about `_BATCH` characters."""
    first = size = 0
    for at, string in enumerate(strings):
        size += len(string)
        if size >= _BATCH:
            yield strings[first : at + 1]
            first, size = at + 1, 0
    if first < len(strings):
        yield strings[first:]


class Scorer:
    """A trained scorer.

    Args:
        weights: [2**bits] of the buckets, times 2**16.
        facts: the contents of ``scorer.json``.
    """

    def __init__(self, weights: npt.NDArray[np.int32], facts: dict[str, Any]):
        self.facts = facts
        self._weights = weights
        self._orders = tuple(facts["orders"])
        self._bits = int(facts["bits"])
        self._bias = float(facts["bias"])

    def score(self, sentences: Sequence[str]) -> Float32:
        """The probability that each sentence is good, in [0, 1]: [sentences]."""
        parts = [self._score(batch) for batch in batches(sentences)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def _score(self, sentences: Sequence[str]) -> Float32:
        text = _folded(sentences)
        lengths = np.diff(text.starts)
        sums, counts = np.zeros_like(lengths), np.zeros_like(lengths)
        running = np.zeros(len(text.points) + 1, dtype=np.int64)
        for order, buckets, valid in _grams(text, self._orders, self._bits):
            # Sums of integers are exact, and so is the difference of two running sums.
            np.cumsum(self._weights[buckets] * valid, dtype=np.int64, out=running[1:])
            sums += running[text.starts[1:]] - running[text.starts[:-1]]
            counts += np.maximum(lengths - order + 1, 0)
        logits = self._bias + sums / (_ONE * np.sqrt(np.maximum(counts, 1)))
        scores: Float32 = (1 / (1 + np.exp(-np.clip(logits, -60, 60)))).astype(np.float32)
        return scores


@lru_cache(maxsize=4)
def load_scorer(path: Path) -> Scorer:
    """The scorer in a directory; each process reads it once.

    Raises:
        DataError: there is no scorer, or another version of bc2 wrote it.
        IntegrityError: the weights are not those that were saved.
    """
    from safetensors.numpy import load_file

    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        digest = sha256_file(path / WEIGHTS)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no scorer can be read: {error}",
            where=str(path),
            todo="train one with `bc2 data train-quality`",
        ) from error
    if not isinstance(facts, dict) or (facts.get("format"), facts.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise DataError(
            f"not a scorer of version {VERSION}",
            where=str(path / FACTS),
            todo="train it again with this version of bc2",
        )
    if digest != facts["sha256"]:
        raise IntegrityError(
            "the scorer's weights are not those that were saved",
            where=str(path / WEIGHTS),
            todo="copy or train it again",
        )
    return Scorer(load_file(path / WEIGHTS)["weights"], facts)


def scorer_digests(path: Path) -> dict[str, str]:
    """Hex SHA-256 of both files of a scorer, by name.

    Raises:
        DataError, IntegrityError: as `load_scorer`.
    """
    load_scorer(path)
    return {name: sha256_file(path / name) for name in (FACTS, WEIGHTS)}


def train_scorer(
    good: Iterable[str],
    bad: Iterable[str],
    out: Path,
    *,
    seed: int,
    limit: int = 500_000,
) -> dict[str, Any]:
    """Train a scorer and save it.

    Texts are split into sentences; equal sentences count once. One sentence in ten, chosen by its
    hash, is held out. All good sentences together weigh as much as all bad ones, however many
    there are of each. The same texts and seed give the same files. Memory: the text of at most
    `limit` sentences of each kind, 50 bytes for each of them, and about 300 MB.

    Args:
        good, bad: texts of one or more sentences.
        out: a missing or empty directory.
        limit: the most sentences of each kind; `seed` chooses them.

    Returns:
        The contents of ``scorer.json``: among others, the numbers of sentences, and the accuracy
        and the area under the ROC curve on the held-out sentences, over all and by script.

    Raises:
        DataError: there are fewer than a hundred sentences of a kind, or `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError("the output directory is not empty", where=str(out), todo="name another")
    chooser = random.Random(seed)
    kinds = [_sentences(texts, limit, chooser) for texts in (bad, good)]
    # Good ones first: the bad ones may be made of them.
    for name, kind in (("good", kinds[1]), ("bad", kinds[0])):
        if len(kind) < _FEWEST:
            raise DataError(
                f"the {name} text has {len(kind)} different sentence{'s'[: len(kind) != 1]}",
                todo=f"give {name} text with {_FEWEST} of them or more",
            )
    sentences = kinds[0] + kinds[1]
    labels = np.repeat([0, 1], [len(kind) for kind in kinds])
    held = np.array([_hash(sentence) % _HELD_OUT == 0 for sentence in sentences])
    weights, bias = _fit(sentences, labels, np.flatnonzero(~held), seed)
    facts = {"format": FORMAT, "version": VERSION, "orders": ORDERS, "bits": BITS, "bias": bias}
    scores = Scorer(weights, facts).score(sentences)
    tests = _tests([sentences[i] for i in np.flatnonzero(held)], labels[held], scores[held])
    counts = {"bad": len(kinds[0]), "good": len(kinds[1]), "held_out": int(held.sum())}
    return _save(out, weights, {**facts, "seed": seed, "sentences": counts, "tests": tests})


def _save(out: Path, weights: npt.NDArray[np.int32], facts: dict[str, Any]) -> dict[str, Any]:
    from safetensors.numpy import save

    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / WEIGHTS, save({"weights": weights}))
    facts = {**facts, "orders": list(facts["orders"]), "sha256": sha256_file(out / WEIGHTS)}
    write_durably(out / FACTS, (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def _sentences(texts: Iterable[str], limit: int, chooser: random.Random) -> list[str]:
    """Distinct sentences, at most `limit`, each with equal probability (reservoir sampling)."""
    kept: list[str] = []
    seen: set[int] = set()
    for text in texts:
        for piece in prose_sentences(text):
            sentence = piece.strip()
            key = _hash(sentence)
            if not sentence or key in seen:
                continue
            seen.add(key)
            place = chooser.randrange(len(seen))
            if len(kept) < limit:
                kept.append(sentence)
            elif place < limit:
                kept[place] = sentence
    return kept


def _hash(sentence: str) -> int:
    """A 64-bit hash of a sentence that is the same in every process."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(sentence.encode(), digest_size=8).digest(), "little")


def _fit(
    sentences: Sequence[str], labels: npt.NDArray[np.int_], chosen: Int64, seed: int
) -> tuple[npt.NDArray[np.int32], float]:
    from sklearn.linear_model import SGDClassifier

    model = SGDClassifier(loss="log_loss", alpha=1e-6, average=True, random_state=seed)
    share = np.bincount(labels[chosen], minlength=2) / len(chosen)
    order = np.random.default_rng(seed)
    for _ in range(_EPOCHS):
        mixed = order.permutation(chosen)
        for start in range(0, len(mixed), _CHUNK):
            now = mixed[start : start + _CHUNK]
            rows = _matrix([sentences[i] for i in now])
            model.partial_fit(
                rows, labels[now], classes=[0, 1], sample_weight=0.5 / share[labels[now]]
            )
    bias = float(model.intercept_[0])
    return np.round(model.coef_[0] * _ONE).astype(np.int32), bias


def _matrix(sentences: Sequence[str]) -> Any:
    """The features of sentences, as a sparse matrix [sentences, buckets]."""
    from scipy.sparse import csr_matrix, vstack

    blocks = []
    for batch in batches(sentences):
        text = _folded(batch)
        owners = text.owners()
        found = [(owners[ok], buckets[ok]) for _, buckets, ok in _grams(text, ORDERS, BITS)]
        rows, columns = (np.concatenate(column) for column in zip(*found, strict=True))
        counts = np.bincount(rows, minlength=len(batch))
        values = 1 / np.sqrt(counts[rows])
        blocks.append(csr_matrix((values, (rows, columns)), shape=(len(batch), 1 << BITS)))
    return vstack(blocks, format="csr")


def _tests(
    sentences: Sequence[str], labels: npt.NDArray[np.int_], scores: Float32
) -> dict[str, dict[str, float]]:
    """Accuracy (with a limit of 0.5) and area under the ROC curve on held-out sentences."""
    from sklearn.metrics import roc_auc_score

    wide = np.array([sum(c > "\u2e7f" for c in s) * 2 > len(s) for s in sentences], dtype=bool)
    results = {}
    for name, chosen in (("all", wide | True), ("cjk", wide), ("other", ~wide)):
        truth, guess = labels[chosen], scores[chosen]
        if len(set(truth.tolist())) == 2:
            accuracy = float(((guess >= 0.5) == truth).mean())
            auc = float(roc_auc_score(truth, guess))
            results[name] = {"sentences": len(truth), "accuracy": accuracy, "auc": auc}
    return results


@lru_cache(maxsize=1)
def _folding() -> UInt32:
    """What each code point is compared as: digits as 0, white space as a space: [_FOLDED]."""

    def fold(point: int) -> int:
        character = chr(point)
        if character.isspace():
            return ord(" ")
        if character.isdigit():
            return ord("0")
        return point

    return np.array([fold(point) for point in range(_FOLDED)], dtype=np.uint32)


def _folded(sentences: Sequence[str]) -> Characters:
    """The folded characters of sentences, each sentence between two spaces."""
    text = characters([f" {sentence.strip()} " for sentence in sentences])
    points = np.where(
        text.points < _FOLDED, _folding()[np.minimum(text.points, _FOLDED - 1)], text.points
    )
    space = points == ord(" ")
    keep = np.ones(len(points), dtype=bool)
    keep[1:] = ~(space[1:] & space[:-1])
    keep[text.starts[:-1]] = True  # the space before it belongs to another sentence
    places = np.concatenate([[0], np.cumsum(keep)])
    return Characters(points[keep], places[text.starts])


def _grams(
    text: Characters, orders: Sequence[int], bits: int
) -> Iterator[tuple[int, Int64, npt.NDArray[np.bool_]]]:
    """The n-grams of each order.

    Yields:
        The order; the bucket of the n-gram that begins at each character [characters]; and whether
        there is one, which is not so if it would go beyond the end of its sentence [characters].
    """
    size = len(text.points)
    ends = np.repeat(text.starts[1:], np.diff(text.starts))
    room = ends - np.arange(size)
    padded = np.concatenate([text.points, np.zeros(max(orders), np.uint32)]).astype(np.uint64)
    rolling = np.zeros(size, dtype=np.uint64)
    salts = np.arange(max(orders) + 1, dtype=np.uint64) * _SALT
    for order in range(1, max(orders) + 1):
        rolling = (rolling + padded[order - 1 : order - 1 + size]) * _FACTOR
        if order in orders:
            # the high bits of a product by an odd number are well mixed
            buckets = (rolling + salts[order]) * _FACTOR >> np.uint64(64 - bits)
            yield order, buckets.astype(np.int64), room >= order
