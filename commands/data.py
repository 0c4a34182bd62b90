"""`bc2 data prep` and `bc2 data tokenize`."""

from __future__ import annotations

from bc2.console import Output
from bc2.options import Fresh, Json, Quiet, RecipeArg, Set, verb
from bc2.recipe import load
from bc2.registry import Registry

app = verb()


@app.command()
def prep(
    recipe: RecipeArg, set_: Set = None, fresh: Fresh = False, json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Read a recipe's sources, drop exact duplicates and split off held-out documents."""
    from bc2 import stages

    session = stages.Session(Registry.open(), fresh=fresh)
    corpus = stages.corpus(session, load(recipe, set_ or []))
    stages.show(corpus, session, Output.of(json=json, quiet=quiet))


@app.command()
def tokenize(
    recipe: RecipeArg, set_: Set = None, fresh: Fresh = False, json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Cut a recipe's corpus into token shards."""
    from bc2 import stages

    session = stages.Session(Registry.open(), fresh=fresh)
    tokens = stages.tokens(session, load(recipe, set_ or []))
    stages.show(tokens, session, Output.of(json=json, quiet=quiet))
