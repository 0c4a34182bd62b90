"""`bc2 pretrain RECIPE`: from whatever is there to a registered base model."""

from __future__ import annotations

from typing import Annotated

import typer

from bc2.console import Output
from bc2.options import Fresh, Json, Quiet, RecipeArg, Set, verb
from bc2.recipe import load
from bc2.registry import Registry

app = verb()

Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Only kernels that give the same bits each time.")
]


@app.command()
def pretrain(
    recipe: RecipeArg,
    set_: Set = None,
    fresh: Fresh = False,
    deterministic: Deterministic = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a base model, building the corpus, tokenizer and token shards it needs.

    A run that died goes on from its last complete checkpoint by itself; a finished one is
    found and not trained again. --fresh trains from the start.
    """
    from bc2 import stages

    overrides = set_ or []
    said = ["pretrain.deterministic=true"] if deterministic else []
    loaded = load(recipe, overrides + said)
    session = stages.Session(Registry.open(), fresh=fresh)
    command = ["bc2", "pretrain", recipe]
    for override in overrides:
        command += ["--set", override]
    if deterministic:
        command.append("--deterministic")
    model = stages.base_model(session, loaded, command)
    stages.show(model, session, Output.of(json=json, quiet=quiet))
