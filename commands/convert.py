"""`bc2 convert REF --to FORMAT`: a checkpoint as other tools read it, proven equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from bc2.console import Output, note
from bc2.errors import Bc2Error, UsageError, nearest
from bc2.options import Json, Quiet, parse_bytes, verb
from bc2.registry import Artifact, Registry

if TYPE_CHECKING:
    from bc2.convert.exporting.export_request import ExportRequest, ProofLevel, Quantization
    from bc2.convert.exporting.target import Dtype

app = verb()

T = TypeVar("T")

#: Spellings of ``--dtype``, GGUF's among them.
_DTYPES: dict[str, Dtype] = {
    "fp32": "fp32", "f32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16",
    "fp16": "fp16", "f16": "fp16", "float16": "fp16", "q8_0": "q8_0",
}  # fmt: skip
_QUANTIZATIONS: dict[str, Quantization] = {"int8": "int8", "nf4": "nf4"}
_LEVELS: dict[str, ProofLevel] = {"full": "full", "tensors": "tensors"}


@app.command(no_args_is_help=True)
def convert(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="A checkpoint; else the newest.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FORMAT", help="See --list.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="fp32, bf16, fp16; gguf: q8_0. Else as stored."),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="KIND", help="int8 or nf4, as bitsandbytes has them.")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of a file of weights: '5 GB'; else 8 GiB.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the export; else REF's and FORMAT.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also copy the files there.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="hf://OWNER/NAME", help="Also upload them, with a card.")
    ] = None,
    proof: Annotated[
        str, typer.Option(metavar="LEVEL", help="full, or tensors: read back and compared.")
    ] = "full",
    no_proof: Annotated[bool, typer.Option("--no-proof", help="Prove nothing.")] = False,
    proof_text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prove with this text; else REF's corpus.")
    ] = None,
    optimizer: Annotated[
        bool, typer.Option("--optimizer", help="Keep its state too; --to safetensors.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written, and who reads it.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the formats.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint in another format, and prove that it computes the same.

    The program that the format is for loads what was written, and is compared with bc2 on real
    text. The export is registered with its lineage; its folder is what the program takes.
    """
    from bc2.convert.exporting.export_request import ExportRequest
    from bc2.parallel.state import FILE_BYTES

    output = Output.of(json=json, quiet=quiet)
    if list_:
        _list(output)
        return
    if to is None:
        raise UsageError("no format is named", where="--to", todo="see bc2 convert --list")
    request = ExportRequest(
        to,
        _one_of(dtype, _DTYPES, "--dtype"),
        FILE_BYTES if max_shard_size is None else parse_bytes(max_shard_size, "--max-shard-size"),
        _one_of(quantize, _QUANTIZATIONS, "--quantize"),
        optimizer,
        _level(proof, no_proof),
        proof_text,
        name,
    )
    registry = Registry.open()
    chosen = _chosen(registry, ref)
    if dry_run:
        _show_plan(chosen, request, output)
    else:
        _convert(registry, chosen, request, out, push, output)


def _list(output: Output) -> None:
    from bc2.console import table
    from bc2.convert.exporting.formats import FORMATS

    rows = [(name, one.help, ", ".join(one.dtypes)) for name, one in FORMATS.items()]
    found = [{"name": name, "help": help_, "dtypes": dtypes} for name, help_, dtypes in rows]
    output.emit(found, table=table(("format", "", "types"), rows), quiet=list(FORMATS))


def _one_of(text: str | None, known: dict[str, T], option: str) -> T | None:
    if text is None:
        return None
    if text.lower() not in known:
        guess = nearest(text.lower(), known)
        raise UsageError(
            f"{option} {text} is unknown",
            todo=f"did you mean {guess!r}?" if guess else f"there are: {', '.join(known)}",
        )
    return known[text.lower()]


def _level(proof: str, no_proof: bool) -> ProofLevel:
    if no_proof and proof != "full":
        raise UsageError(f"--no-proof and --proof {proof}", todo="leave one of them out")
    return "none" if no_proof else _one_of(proof, _LEVELS, "--proof") or "full"


def _chosen(registry: Registry, ref: str | None) -> Artifact:
    if ref is not None:
        return registry.resolve(ref, "checkpoint")
    chosen = registry.newest("checkpoint", ("base", "chat", "merged", "reward"))
    note(f"taking the newest model, {chosen.title} ({chosen.ref})")
    return chosen


def _show_plan(chosen: Artifact, request: ExportRequest, output: Output) -> None:
    from bc2.convert.exporting.export_model import plan_export
    from bc2.convert.exporting.export_view import plan_json, plan_table
    from bc2.convert.exporting.source_model import SourceModel
    from bc2.convert.proof.prove import check_room

    with SourceModel.open(chosen) as source:
        plan = plan_export(source, request)
        hindrance: Bc2Error | None = None
        try:
            check_room(source, plan, request.proof)
        except Bc2Error as error:
            hindrance = error
        output.emit(
            plan_json(source, plan, hindrance),
            table=plan_table(source, plan, hindrance),
            quiet=list(plan.sizes),
        )


def _convert(
    registry: Registry,
    chosen: Artifact,
    request: ExportRequest,
    out: Path | None,
    push_to: str | None,
    output: Output,
) -> None:
    from bc2.convert.exporting.copy_out import check_target, copy_out
    from bc2.convert.exporting.export_model import export_model
    from bc2.convert.exporting.export_view import show_export
    from bc2.convert.exporting.push import check_access, push, repository

    registry.check_writable()
    if out is not None:
        check_target(out, 0)
    repo = None if push_to is None else repository(push_to)
    if repo is not None:
        check_access(repo)
    export, made = export_model(registry, chosen, request)
    if out is not None:
        check_target(out, sum(entry.size for entry in export.manifest.files))
        copy_out(export, out)
    if repo is not None:
        note(push(export, repo))
    show_export(export, output, made=made)
