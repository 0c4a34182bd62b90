"""A checkpoint written in another format, proven, and registered as an export.

Nothing is written before everything is known that can be: whether the format has what the model
needs, the files and their sizes, whether there is room for them and for the proof. What fails
afterwards leaves nothing.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from bc2.console import note, progress
from bc2.convert.exporting.export_request import ExportRequest
from bc2.convert.exporting.formats import FORMATS
from bc2.convert.exporting.model_card import CARD, model_card
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.convert.proof.open_consumer import check_consumer
from bc2.convert.proof.prove import check_room, prove, scratch_bytes
from bc2.convert.proof.real_texts import proof_texts
from bc2.errors import ResourceError, UsageError, from_os_error
from bc2.files import sha256_json, write_durably
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.registry.draft import check_name
from bc2.registry.manifest import FileEntry
from bc2.registry.staging import existing
from bc2.train.allocator import keep_freed_memory

#: Raised when the same checkpoint would give other files.
_VERSION = 1

#: What the proof found, beside the weights.
PROOF = "proof.json"


def plan_export(source: SourceModel, request: ExportRequest) -> ExportPlan:
    """Everything that a conversion will write; nothing is written.

    Raises:
        UsageError: the format lacks what the model needs.
    """
    wanted = FORMATS[request.format]
    head = source.config.head
    if not wanted.takes(head):
        raise UsageError(
            f"{source.artifact.title} has a {head} head, and {request.format} is a format of "
            "language models",
            where="--to",
            todo="--to safetensors writes its weights",
        )
    pieces, rows = source.tokenizer.vocab_size, source.config.vocab_size
    if pieces > rows and not wanted.any_head:
        raise UsageError(
            f"the tokenizer of {source.artifact.title} has {pieces:,} pieces, and the model "
            f"{rows:,} rows: some text would have ids that it has not",
            where="--to",
            todo="--to safetensors writes its weights",
        )
    if head != "language" and request.quantization is not None:
        raise UsageError(
            f"{source.artifact.title} has a {head} head, and bitsandbytes' formats are written "
            "for language models",
            where="--quantize",
            todo="leave it out; transformers quantises what is written as it loads it",
        )
    plan = wanted.plan(source, request.dtype, request.limit)
    if request.quantization is not None:
        from bc2.convert.exporting.quantize import quantized

        plan = quantized(plan, source, request.quantization)
    if request.optimizer:
        plan = _with_optimizer(plan, source)
    return plan


def _with_optimizer(plan: ExportPlan, source: SourceModel) -> ExportPlan:
    """The files of the optimizer's state as they are."""
    names = [
        name
        for name in source.artifact.files()
        if name.startswith("optimizer") and name.endswith(".safetensors")
    ]
    if not names:
        raise UsageError(
            f"{source.artifact.title} holds no state of an optimizer",
            where="--optimizer",
            todo="leave it out; checkpoints of a run that still goes on have it",
        )
    return replace(plan, copied=tuple(names))


def export_model(
    registry: Registry, artifact: Artifact, request: ExportRequest
) -> tuple[Artifact, bool]:
    """Convert a checkpoint, prove it, and register the export.

    Returns:
        The export, and whether it was made: one of the same settings is found.

    Raises:
        UsageError: the checkpoint does not fit the format, or the proof cannot be had here.
        DataError: a weight is not finite, or too large for the type.
        RunFailed: the proof found a difference. Nothing is left behind.
        ResourceError: there is no room on the disk.
        IntegrityError: a file of the checkpoint is not what was published.
    """
    with SourceModel.open(artifact) as source:
        plan = plan_export(source, request)
        for sentence in plan.notes:
            note(sentence)
        own = request.proof_text
        text = None if own is None else proof_texts(artifact, own).digest
        draft = _draft(source, plan, request, text)
        known = registry.find("export", draft.key)
        if known is not None:
            return known, False
        registry.sweep()  # one that was killed may have left as much as the model has
        level = check_room(source, plan, request.proof)
        needed = total_size(plan, source) + scratch_bytes(source, plan, level)
        _check_disk(registry.staging_of("export", draft.name), needed)
        try:
            with registry.stage(draft) as staged:
                written = _write(staged.path, source, plan)
                source.check_intact()
                proof = prove(staged.path, source, plan, level=level, data=request.proof_text)
                write_durably(staged.path / PROOF, f"{json.dumps(proof, indent=2)}\n".encode())
                card = model_card(registry, artifact, plan, proof)
                write_durably(staged.path / CARD, card.encode())
                return staged.publish({"proof": proof["level"]}, known=written), True
        except OSError as error:
            raise from_os_error(error, f"converting {artifact.title}") from error


def _draft(
    source: SourceModel, plan: ExportPlan, request: ExportRequest, proof_text: str | None
) -> Draft:
    """An export is another one where less of it was proven, or on another text.

    Args:
        proof_text: the digest of the text that the proof is on; None: of the model's own.
    """
    artifact = source.artifact
    name = request.name
    if name is None:
        name = "-".join(filter(None, (artifact.name, plan.format, request.quantization)))
    settings = {
        "format": plan.format, "dtype": plan.dtype, "limit": request.limit,
        "quantization": request.quantization, "copied": list(plan.copied), "name": name,
        "proof": request.proof,
        "lacks": plan.prover if request.proof == "full" and not check_consumer(plan) else None,
        "proof_text": proof_text,
        "texts": sha256_json({file: data.hex() for file, data in plan.texts.items()}),
    }  # fmt: skip
    facts = {
        "format": plan.format,
        "dtype": plan.numbers,
        "params": source.config.num_params(),
        "readers": {one.name: one.reads for one in plan.readers},
    }
    key = stage_key("export", _VERSION, settings, [artifact.digest])
    return Draft("export", check_name(name), key, (artifact.digest,), facts=facts)


def _check_disk(staging: Path, needed: int) -> None:
    """Raises: ResourceError: what is to be written is more than the disk has free."""
    free = shutil.disk_usage(existing(staging)).free
    if needed > free:
        raise ResourceError(
            f"{needed / 1e9:,.1f} GB are to be written, and {free / 1e9:,.1f} GB are free",
            where=str(existing(staging)),
            todo="free some, or put $BC2_HOME on another disk",
        )


def total_size(plan: ExportPlan, source: SourceModel) -> int:
    """Bytes of all files that a plan writes; the proof's and the card's few kilobytes are not
    known before."""
    texts = sum(map(len, plan.texts.values()))
    copied = sum(source.artifact.entry(name).size for name in plan.copied)
    return sum(plan.sizes.values()) + texts + copied


def _write(folder: Path, source: SourceModel, plan: ExportPlan) -> list[FileEntry]:
    """Write all files; what is known of those whose digest was taken on the way."""
    for name, data in plan.texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_durably(folder / name, data)
    for name in plan.copied:
        shutil.copyfile(source.artifact.file(name), folder / name)
    keep_freed_memory()
    with progress(f"writing {plan.format}", sum(plan.sizes.values()), "bytes") as seen:
        digests = plan.write(folder, source, plan, seen)
    return [
        FileEntry(path=file, size=(folder / file).stat().st_size, sha256=digest)
        for file, digest in digests.items()
    ]
