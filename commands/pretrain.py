"""`bc2 pretrain RECIPE`: from whatever is there to a registered base model."""

from __future__ import annotations

from typing import Annotated

import typer

from bc2.console import Output
from bc2.options import (
    Fresh,
    Json,
    MaxRestarts,
    NNodes,
    NodeRank,
    NProc,
    Quiet,
    RecipeArg,
    Rendezvous,
    Set,
    verb,
)
from bc2.ranks import launched_with, restarted
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
    nproc: NProc = 1,
    nnodes: NNodes = "1",
    node_rank: NodeRank = None,
    rendezvous: Rendezvous = None,
    max_restarts: MaxRestarts = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a base model, building the corpus, tokenizer and token shards it needs.

    A run that died goes on from its last complete checkpoint by itself; a finished one is
    found and not trained again. --fresh trains from the start. --nproc starts ranks that
    share the work as [parallel] says; under torchrun, deepspeed or srun leave it out.
    """
    from bc2 import stages
    from bc2.launch import Ranks, launch

    ranks = Ranks(nproc, nnodes, node_rank, rendezvous, max_restarts)

    overrides = set_ or []
    said = ["pretrain.deterministic=true"] if deterministic else []
    loaded = load(recipe, overrides + said)
    command = ["bc2", "pretrain", recipe]
    for override in overrides:
        command += ["--set", override]
    if deterministic:
        command.append("--deterministic")
    # Ranks that are started again go on.
    session = stages.Session(Registry.open(), fresh=fresh and not restarted())
    if ranks.wanted:
        # What the ranks would all make is made once.
        stages.base_inputs(session, loaded, nproc * ranks.machines[0])
        ways = [*(["--fresh"] if fresh else []), *(["--json"] if json else [])]
        ways += ["--quiet"] if quiet else []
        launch(ranks, [*command[1:], *ways], session.registry.work)
        return
    model = stages.base_model(session, loaded, [*command, *launched_with()])
    stages.show(model, session, Output.of(json=json, quiet=quiet))
