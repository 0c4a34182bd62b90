"""`bc2 score-reward REF... --data FILE`: what reward models say of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bc2.console import Output, note
from bc2.errors import UsageError
from bc2.generate.command_options import Device, Precision
from bc2.options import Json, verb
from bc2.registry import Artifact, Registry

if TYPE_CHECKING:
    from bc2.data.splits import Split

app = verb()


@app.command(no_args_is_help=True)
def score_reward(
    refs: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]REF...", help="Reward models, whole ones and adapters."),
    ],
    data: Annotated[
        str,
        typer.Option(metavar="FILE|REF", help="Answers: chats or pairs, a file or an artifact."),
    ],
    split: Annotated[
        str | None, typer.Option(help="Of an artifact: heldout or train.", show_default="heldout")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.jsonl", help="A line for each answer and its scores."),
    ] = None,
    too_long: Annotated[
        str, typer.Option(help="Answers longer than a model's window: stop or drop.")
    ] = "stop",
    faulty: Annotated[
        str, typer.Option(help="Answers that say nothing or have no place: stop or drop.")
    ] = "stop",
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Score answers by reward models, each in the model's own layout and to the answer's end.

    Of pairs it says too how many each model has in order: overall, by gap and by source, beside
    the rule that the longer answer is the better one. Several models are compared.
    """
    chosen_split = _split(split)
    stopping = [_what_to_do(given, option) for given, option in (
        (too_long, "--too-long"), (faulty, "--faulty"),
    )]  # fmt: skip
    from bc2.report.result_file import ResultFile

    results = ResultFile(out) if out is not None else None
    registry = Registry.open()
    models = named_models(registry, refs)

    from bc2.align.reward.score_answers import ScoreScale
    from bc2.align.reward.score_data import open_data
    from bc2.align.reward.score_figures import score_figures
    from bc2.align.reward.score_models import score_models
    from bc2.align.reward.score_rows import score_rows
    from bc2.align.reward.score_view import score_view
    from bc2.train.device import DTYPES, pick_device, pick_inference_precision

    where = pick_device(device)
    dtype = DTYPES[pick_inference_precision(precision, where)]
    with open_data(registry, data, chosen_split) as answers:
        found = score_models(
            models, answers, where, dtype, too_long=stopping[0], faulty=stopping[1]
        )
        scales = {name: ScoreScale.of(artifact) for name, artifact in models.items()}
        figures = score_figures(answers, found, scales)
        if results is not None:
            with results:
                for row in score_rows(answers, found, scales):
                    results.write(row)
            note(f"answers written to {results.path}: {results.written:,}")
    named = {name: artifact.ref for name, artifact in models.items()}
    about = {"refs": named, "out": None if out is None else str(out), **figures}
    Output.of(json=json).emit(about, table=score_view(figures), kept=results is not None)


def named_models(registry: Registry, refs: Sequence[str]) -> dict[str, Artifact]:
    """Reward models by what they are called: their names, or NAME of NAME=REF.

    Raises:
        UsageError: two have one name.
        RefError: see `bc2.generate.chosen_model.chosen_reward_model`.
    """
    from bc2.generate.chosen_model import chosen_reward_model

    found: dict[str, Artifact] = {}
    for ref in refs:
        name, equals, rest = ref.partition("=")
        given = bool(equals) and not name.startswith((".", "/", "~"))
        artifact = chosen_reward_model(registry, rest if given else ref)
        name = name if given else artifact.name
        if not name or name in found:
            what = f"two models are called {name!r}" if name else "a model without a name"
            raise UsageError(what, where=ref, todo="give each a name of its own: NAME=REF")
        found[name] = artifact
    return found


def _split(given: str | None) -> Split | None:
    from bc2.data.splits import SPLITS

    for split in SPLITS:
        if given == split:
            return split
    if given is None:
        return None
    raise UsageError(f"--split: {given!r} is no split", todo=f"give {' or '.join(SPLITS)}")


def _what_to_do(given: str, option: str) -> Literal["stop", "drop"]:
    if given == "stop" or given == "drop":
        return given
    raise UsageError(f"{option}: {given!r} is neither stop nor drop")
