"""Which sections of a recipe a command reads, and overrides (``--set``) that reach nothing.

Whoever asks for an artifact reads the sections of its stage, and those of every upstream stage that
is made of this recipe. Behind an input that the recipe names (a ref, another recipe) nothing of
this recipe is read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bc2.console import note
from bc2.errors import RecipeError
from bc2.override import spelled_place
from bc2.pipeline.completion import completed
from bc2.pipeline.table import ALGORITHMS, STAGES, stage_of
from bc2.recipe import SECTIONS, TOP_KEYS, Recipe, is_section, load
from bc2.registry import Kind
from bc2.toml_file import KeyPath, dotted


@dataclass(frozen=True)
class Reach:
    """What making an artifact reads of a recipe."""

    sections: frozenset[str]
    named: tuple[tuple[Kind, str], ...]
    """The inputs that come from elsewhere: their kind, and the ref or recipe that is named."""

    @property
    def spelled(self) -> str:
        """``its tokens from 'small.toml'``, for messages."""
        return " and ".join(f"its {kind} from {name!r}" for kind, name in self.named)


def load_for(
    kind: Kind, source: str | Path, overrides: Sequence[str] = (), *,
    reads: Collection[str] | None = None, also: Collection[str] = (),
) -> Recipe:  # fmt: skip
    """Read a recipe for a command that asks for an artifact of `kind`.

    Args:
        overrides: as of ``--set``.
        reads: the sections that the command reads, if they are not those of `kind`: a plan.
        also: sections that the command itself reads beside them.

    Raises:
        RecipeError: as `bc2.recipe.load`; or an override reaches nothing.
        RefError: what it begins with, and takes its [model] from, is not there.
    """
    recipe = load(source, overrides)
    if kind == "checkpoint":
        recipe = completed(recipe)
    check_overrides(recipe, kind, reads=reads, also=also)
    return recipe


def load_training(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe for a command about its training, which makes no inputs: a plan.

    Raises:
        Bc2Error: as `load_for`.
    """
    recipe = completed(load(source, overrides))
    check_overrides(recipe, "checkpoint", reads=stage_of("checkpoint", recipe).sections)
    return recipe


def check_overrides(
    recipe: Recipe, kind: Kind, *, reads: Collection[str] | None = None, also: Collection[str] = ()
) -> None:
    """Refuse overrides that reach nothing.

    One that only a later command for this recipe reads (``pretrain.length`` for a corpus) is said
    on stderr and no error, so that all commands of a pipeline can be given the same overrides.

    Raises:
        RecipeError: neither this command nor a later one reads it.
    """
    own = {*(stage_of(kind, recipe).sections if reads is None else reads), *also, *TOP_KEYS}
    if all(path[0] in own for path in recipe.overrides):
        return  # what names no other section needs no look at the stages
    found = reach(recipe, kind)
    own |= found.sections if reads is None else set()
    later = {*_later(kind, recipe), *found.sections, *_of_no_stage(recipe)}
    if kind == "checkpoint":
        # Of a verb before this one or after it, of bc2's own or another package's.
        names = {str(path[0]) for path in recipe.overrides} - SECTIONS.keys()
        later |= {*ALGORITHMS, *filter(is_section, names)}
    for path, spelled in recipe.overrides.items():
        if path[0] in own:
            continue
        if path[0] not in later:
            raise _unreached(path, spelled, kind, found)
        note(f"{spelled_place(spelled)} has no effect here: it is for another command")


def reach(recipe: Recipe, kind: Kind, settings: Any = None) -> Reach:
    """The sections of `recipe` that making its artifact of `kind` reads.

    Args:
        settings: of the stage, where the caller has resolved them already.

    Raises:
        RecipeError: a section on the way is missing or wrong.
    """
    stage = stage_of(kind, recipe)
    settings = stage.read(recipe) if settings is None else settings
    sections, named = set(stage.sections), dict[tuple[Kind, str], None]()
    for needed in stage.inputs:
        given = needed.named(settings)
        if given is not None:
            every = [given] if isinstance(given, str) else given
            named |= dict.fromkeys((needed.kind, one) for one in every)
        elif not needed.optional and stage_of(needed.kind, recipe).made_by(recipe, stage_of):
            below = reach(recipe, needed.kind)
            sections |= below.sections
            named |= dict.fromkeys(below.named)
    return Reach(frozenset(sections), tuple(named))


def recorded_recipe(recipe: Recipe, kind: Kind, settings: Any) -> dict[str, Any]:
    """What an artifact records of its recipe: the sections that had an effect on it.

    And those of no stage, such as a ladder's, by which its members are known.
    """
    return recipe.resolved({*reach(recipe, kind, settings).sections, *_of_no_stage(recipe)})


def unread_sections(recipe: Recipe) -> dict[Kind, tuple[Collection[str], Reach]]:
    """For each stage of a recipe, the sections of earlier stages that it has and does not read."""
    unread: dict[Kind, tuple[Collection[str], Reach]] = {}
    for kind in STAGES:
        stage = stage_of(kind, recipe)
        if stage.section is None or not recipe.has(stage.section):
            continue
        try:
            found = reach(recipe, kind)
        except RecipeError:
            continue  # a part of a recipe, for others to be based on
        earlier = {
            name for below in _earlier(kind, recipe) for name in stage_of(below, recipe).sections
        }
        missed = [name for name in recipe.section_names if name in earlier - found.sections]
        if missed:
            unread[kind] = (missed, found)
    return unread


def _earlier(kind: Kind, recipe: Recipe) -> set[Kind]:
    """The kinds that artifacts of `kind` may be made from, and those behind them."""
    # A checkpoint may start from another one, which is not followed further.
    direct = {needed.kind for needed in stage_of(kind, recipe).inputs} - {kind}
    return direct.union(*(_earlier(below, recipe) for below in direct))


def _later(kind: Kind, recipe: Recipe) -> set[str]:
    """The sections of stages that may read what is made of `kind`."""
    stages = [stage_of(other, recipe) for other in STAGES if kind in _earlier(other, recipe)]
    return {name for stage in stages for name in stage.sections}


def _of_no_stage(recipe: Recipe) -> set[str]:
    """The sections that only commands read."""
    of_stages = {name for kind in STAGES for name in stage_of(kind, recipe).sections}
    return set(SECTIONS) - of_stages - set(ALGORITHMS)


def _unreached(path: KeyPath, spelled: str, kind: Kind, found: Reach) -> RecipeError:
    named = found.spelled
    recipes = [name for _, name in found.named if name.endswith(".toml")]
    why = f": the recipe takes {named}, so its own [{path[0]}] is not read" if named else ""
    return RecipeError(
        f"{dotted(path)} reaches nothing of this {kind}{why}",
        where=spelled_place(spelled),
        todo=f"leave it out, or change {' or '.join(recipes)}" if recipes else "leave it out",
    )
