"""Log-probabilities of a reference, computed once and registered: other runs find them.

    train.parquet   heldout.parquet

Columns: answer (its place in the split of `bc2.data.pairs.pairs.Pairs.answers`), tokens (of the
answer, its end included), log_prob (their sum in nats, fp64).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bc2.align.dpo.dpo_config import DpoConfig
from bc2.align.dpo.dpo_objective import answer_log_probs
from bc2.align.dpo.reference import reference_of
from bc2.align.pairs.in_turns import in_turns
from bc2.align.pairs.pair_inputs import PairInputs, render_settings
from bc2.align.pairs.pair_samples import PairSamples
from bc2.align.pairs.preference_config import PreferenceConfig
from bc2.align.samples.packed_batch import make_batch
from bc2.align.samples.packing import Rows, pack_rows
from bc2.align.samples.rendered_chats import ChatSource, rendered_chats
from bc2.align.samples.sample_store import Samples
from bc2.align.samples.speech import pad_id
from bc2.console import Progress, note, progress
from bc2.data.documents import SourceFile
from bc2.data.loader import Batch
from bc2.data.splits import SPLITS, Split
from bc2.data.tables import open_parquet
from bc2.errors import DataError, RunFailed
from bc2.model.store import CONFIG, load_config
from bc2.parallel.agreement import fail_together
from bc2.parallel.mesh import Mesh
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.device import pick_precision
from bc2.train.engines.frozen import FrozenModel
from bc2.train.run import Run
from bc2.train.start_weights import open_start_weights

#: Raised when the same pairs and reference would give other numbers.
_VERSION = 1

_SCHEMA = pa.schema(
    [
        pa.field("answer", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("log_prob", pa.float64(), nullable=False),
    ]
)

#: What of the recorded facts must be a run's, and what is said where it is not.
_OTHER = {
    "pairs": "its pairs are others",
    "reference": "its reference is another model",
    "tokenizer": "its tokenizer is another one",
    "layout": "its chat layout is another one",
}

#: Of each split: the places of answers [N], their tokens [N] and log-probabilities [N].
Columns = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class ReferenceLogprobs:
    """The log-probability of every answer of some pairs under a reference."""

    artifact: Artifact
    splits: Mapping[Split, Columns]

    def of_pairs(self, split: Split, pairs: PairSamples) -> npt.NDArray[np.float64]:
        """Of the chosen and the rejected answer of each pair, in nats: [P, 2].

        Raises:
            DataError: they are not of these answers.
        """
        answers, tokens, log_probs = self.splits[split]
        wanted = pairs.samples.index[pairs.places]
        at = np.searchsorted(answers, wanted)
        at = np.minimum(at, max(0, len(answers) - 1))
        if len(pairs) and not (
            len(answers)
            and np.array_equal(answers[at], wanted)
            and np.array_equal(tokens[at], pairs.samples.trained[pairs.places])
        ):
            raise other_data(self.artifact, "it lacks answers, or has others")
        found: npt.NDArray[np.float64] = log_probs[at] if len(pairs) else np.zeros((0, 2))
        return found


def obtain_logprobs(
    run: Run, data: PairInputs, registry: Registry, mesh: Mesh
) -> ReferenceLogprobs:
    """Those that the recipe names, or the registered ones, or new ones. All ranks call it.

    Raises:
        RefError: named ones are not registered.
        DataError: named ones are of other data, another reference, layout or precision.
        RunFailed: a log-probability is not finite.
    """
    key, facts = _identity(run, data)
    found: tuple[str, dict[Split, Columns]] | None = None
    with fail_together(mesh.world):
        if mesh.first and (known := find_logprobs(run, data, registry)) is not None:
            found = known.digest, {split: _read(known, split) for split in SPLITS}
    found = mesh.world.broadcast_object(found)
    if found is None:
        found = _compute(run, data, registry, mesh, key, facts)
    digest, splits = found
    return ReferenceLogprobs(registry.get(digest), splits)


def _identity(run: Run, data: PairInputs) -> tuple[str, dict[str, Any]]:
    """The key, and what is recorded and compared."""
    config, reference = run.config, reference_of(run)
    assert isinstance(config, PreferenceConfig)
    facts: dict[str, Any] = {
        "pairs": run.inputs.one("pairs").digest,
        "reference": reference.digest,
        "tokenizer": Tokenizer.load(data.source.tokenizer).digest,
        "layout": dict(data.source.layout),
        "sequence_length": config.sequence_length,
        "precision": str(config.precision),
    }
    parents = (facts["pairs"], facts["reference"])
    return stage_key("logprobs", _VERSION, facts, parents), facts


def find_logprobs(run: Run, data: PairInputs, registry: Registry) -> Artifact | None:
    """Those that the recipe names, or the registered ones; None: there are none.

    Raises:
        RefError: named ones are not registered.
        DataError: named ones are of other data, another reference, layout or precision.
    """
    key, facts = _identity(run, data)
    assert isinstance(run.config, DpoConfig)
    if run.config.reference_logprobs is None:
        return registry.find("logprobs", key)
    named = registry.resolve(run.config.reference_logprobs, "logprobs")
    for name, why in _OTHER.items():
        if named.manifest.facts.get(name) != facts[name]:
            raise other_data(named, why)
    made_in, wanted = named.manifest.facts.get("precision"), facts["precision"]
    if made_in != wanted:
        raise DataError(
            f"{named.title} holds log-probabilities computed in {made_in}, and this run computes "
            f"in {wanted}: their difference would be taken for what was learnt",
            where="dpo.reference_logprobs",
            todo=f'set precision = "{made_in}", or leave reference_logprobs out',
        )
    return named


def other_data(artifact: Artifact, why: str) -> DataError:
    """The error of log-probabilities that are not those of a run's pairs and reference."""
    return DataError(
        f"{artifact.title} holds log-probabilities of other data: {why}",
        where="dpo.reference_logprobs",
        todo="leave reference_logprobs out: those of these pairs and this reference are found, or "
        "computed once",
    )


def _read(artifact: Artifact, split: Split) -> Columns:
    path = artifact.file(f"{split}.parquet")
    with open_parquet(SourceFile(path.name, path)) as file:
        rows = file.read()
    answers, tokens, log_probs = (column.to_numpy() for column in rows.columns)
    return answers, tokens, log_probs


def _compute(
    run: Run, data: PairInputs, registry: Registry, mesh: Mesh, key: str, facts: dict[str, Any]
) -> tuple[str, dict[Split, Columns]]:
    """Compute and register them; the digest, and the numbers."""
    model = _load(run, mesh)
    splits = {split: _of_split(split, run, data.source, model, mesh) for split in SPLITS}
    del model
    digest = None
    with fail_together(mesh.world):
        if mesh.first:
            digest = _publish(run, registry, key, facts, splits).digest
    digest = mesh.world.broadcast_object(digest)
    assert digest is not None
    return digest, splits


def _load(run: Run, mesh: Mesh) -> FrozenModel:
    reference, device = reference_of(run), torch.device(run.config.device)
    config = load_config(reference.file(CONFIG).parent)
    if mesh.first:
        note(f"computing log-probabilities of the reference {reference.title}, once")
    return FrozenModel(
        config,
        open_start_weights(reference, config, run.config.seed, mesh),
        run.parallel,
        mesh,
        device=device,
        precision=pick_precision(run.config.precision, device),
    )


def _of_split(
    split: Split, run: Run, source: ChatSource, model: FrozenModel, mesh: Mesh
) -> Columns:
    config = run.config
    assert isinstance(config, PreferenceConfig)
    samples = rendered_chats(source, split, render_settings(config))
    rows = pack_rows(samples.lengths, config.sequence_length, config.seed, 0)
    micro = 1 if config.micro_batch == "auto" else config.micro_sequences
    with progress(f"reference, {split}", len(samples), "answers") as bar:
        batches = _batches(samples, rows, micro, config, pad_id(source), bar)
        found = [*in_turns(model.call_model, mesh, batches, answer_log_probs)]
    numbers = np.concatenate([np.zeros((0, 2)), *found])
    order = np.argsort(rows.items)
    log_probs, tokens = numbers[order].T
    if not np.isfinite(log_probs).all():
        raise RunFailed(
            "log-probabilities of the reference are not numbers",
            todo="take an earlier checkpoint as the reference",
        )
    return np.asarray(samples.index), tokens.astype(np.int64), np.ascontiguousarray(log_probs)


def _batches(
    samples: Samples, rows: Rows, micro: int, config: PreferenceConfig, pad: int, bar: Progress
) -> Iterator[Batch]:
    """Rows of packed answers, at most `micro` at a time."""
    for first in range(0, len(rows), micro):
        numbers = range(first, min(first + micro, len(rows)))
        some = [[samples.sample(place) for place in rows[one].tolist()] for one in numbers]
        yield make_batch(some, config.sequence_length, pad)
        bar(sum(map(len, some)))


def _publish(
    run: Run,
    registry: Registry,
    key: str,
    facts: Mapping[str, Any],
    splits: Mapping[Split, Columns],
) -> Artifact:
    parents = (facts["pairs"], facts["reference"])
    counts = {split: len(splits[split][0]) for split in SPLITS}
    draft = Draft("logprobs", run.name, key, parents=parents, facts={**facts, "answers": counts})
    with registry.stage(draft) as staged:
        for split in SPLITS:
            table = pa.table([*map(pa.array, splits[split])], schema=_SCHEMA)
            pq.write_table(
                table, staged.path / f"{split}.parquet", compression="zstd",
                write_page_checksum=True,
            )  # fmt: skip
        return staged.publish()
