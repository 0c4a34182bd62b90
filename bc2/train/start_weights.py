"""``init``: the checkpoints that a run's models start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bc2.errors import RecipeError
from bc2.model.store import load_config, weight_files
from bc2.parallel.agreement import fail_together
from bc2.parallel.build import StartWeights
from bc2.parallel.mesh import Mesh
from bc2.parallel.state import StateSource, Stored

if TYPE_CHECKING:
    from bc2.registry import Artifact
    from bc2.train.algorithm import ModelRole
    from bc2.train.run import Run

#: Settings of a model in which it may differ from the weights that it starts from: they change no
#: shape of a layer, or only the head's, which is then drawn from the seed.
_MAY_DIFFER = {"head", "num_classes", "context_length", "initializer_range"}


def check_start(run: Run) -> None:
    """Check that every model has the shape of what it starts from.

    Raises:
        RecipeError: it has another one; the settings that differ are named.
    """
    for role in run.settings.models:
        artifact = _start_of(run, role)
        if artifact is not None:
            _check_shape(run, role, artifact)


def _start_of(run: Run, role: ModelRole) -> Artifact | None:
    return run.inputs.get(role.init) if role.init is not None else None


def _check_shape(run: Run, role: ModelRole, artifact: Artifact) -> None:
    artifact.file("model.json")
    there = load_config(artifact.path).model_dump()
    wanted = role.model.model_dump()
    other = [name for name in wanted if wanted[name] != there[name] and name not in _MAY_DIFFER]
    if other:
        said = ", ".join(f"{name} is {there[name]} there and {wanted[name]} here" for name in other)
        raise RecipeError(
            f"{run.config.section}.{role.init} = {artifact.title} is another model: {said}",
            where=run.settings.recipe.where(("model", other[0])),
            todo="make [model] equal, or start from another checkpoint",
        )


def open_start_weights(run: Run, mesh: Mesh, *, resumes: bool) -> dict[str, StateSource]:
    """By role, the weights that models start from, whose files were checked before.

    Args:
        resumes: the trained ones get a checkpoint's weights instead.

    Raises:
        IntegrityError: the files are not weights of this model; on every rank alike.
    """
    found: dict[str, StateSource] = {}
    with fail_together(mesh.side):
        for role in run.settings.models:
            artifact = _start_of(run, role)
            if artifact is None or (resumes and role.trained):
                continue
            names = weight_files(artifact.files())
            stored = Stored.open([artifact.path / name for name in names])
            found[role.name] = StartWeights(role.model, stored, run.config.seed)
    return found
