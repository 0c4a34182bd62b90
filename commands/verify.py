"""`bc2 verify resume RECIPE`: proof, on this machine, that nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bc2.console import Output, note
from bc2.errors import RunFailed
from bc2.options import Json, NProc, Quiet, RecipeArg, Set, output_file, verb
from bc2.pipeline.reach import load_for
from bc2.process.launcher_variables import refuse_ranks
from bc2.registry import Registry

app = verb()


@app.callback()
def _verify() -> None:
    """Prove on your own recipe and machine what bc2 promises of it."""


@app.command()
def resume(
    recipe: RecipeArg,
    set_: Set = None,
    nproc: NProc = 1,
    steps: Annotated[int, typer.Option(min=4, help="Steps of each run.")] = 12,
    kills: Annotated[int, typer.Option(min=1, help="How often the killed run is killed.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Draws the moments of the kills.")] = 0,
    ranks: Annotated[
        str | None, typer.Option(metavar="N,N", help="Go on with so many ranks, one after another.")
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(metavar="N:KEY=VALUE,...", help="Go on so, e.g. 4:zero=2,tensor=2."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the certificate goes.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Hold short runs of a recipe against each other: straight, killed, and laid out anew.

    The killed one must be the straight one to the bit. The one that goes on with other
    numbers of ranks must read the same samples and find the same losses but for rounding.
    The certificate is kept below the home, or in --out, and with the recipe's finished
    checkpoint if there is one.
    """
    refuse_ranks("bc2 verify")
    from bc2.pipeline.session import Session
    from bc2.train.rank_layout import recipe_layout
    from bc2.train.training_settings import TrainingSettings
    from bc2.verify.certificate import register_certificate, write_certificate
    from bc2.verify.other_layouts import check_fits, other_layouts
    from bc2.verify.resume import ResumeRequest, finished_checkpoint, verify_resume

    if out is not None:
        out = output_file(out, "--out")
    registry, loaded = Registry.open(), load_for("checkpoint", recipe, set_ or [])
    registry.check_writable()
    settings = TrainingSettings.of(loaded)
    settings.check_ranks(nproc)
    base = recipe_layout(settings, nproc)
    check_fits(settings, base)
    others = other_layouts(settings, base, ranks, layout)
    inputs = Session(registry).obtain_inputs("checkpoint", loaded, settings=settings)
    asked = ResumeRequest(settings, inputs, base, others, steps, kills, seed)
    found = verify_resume(asked, registry)
    path = out or registry.home / "verify" / f"resume-{loaded.name}.json"
    write_certificate(found, path)
    note(f"the certificate is {path}")
    checkpoint = finished_checkpoint(asked, registry) if found.holds else None
    artifact = register_certificate(found, registry, checkpoint) if checkpoint else None
    refs = [artifact.ref] if artifact else []
    answer = {**found.as_json(), "file": str(path), "ref": refs[0] if refs else None}
    Output.of(json=json, quiet=quiet).emit(answer, table=found.as_table(), quiet=refs, kept=True)
    if not found.holds:
        raise RunFailed(
            found.first_difference() or "",
            where=str(path),
            todo=f"on a GPU, bits need --set {settings.training.section}.deterministic=true",
        )
