"""The stage of an algorithm: [model] and its section -> a trained model and its checkpoints."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig, differences
from bc2.parallel.parallel_config import ParallelConfig
from bc2.pipeline.sources import sources_of
from bc2.pipeline.stage import Inputs, Made, RunTask, Stage
from bc2.ranks import world_size
from bc2.recipe import Recipe
from bc2.registry import Artifact, Registry
from bc2.train.algorithm import Algorithm
from bc2.train.taken_model import take_model
from bc2.train.training_settings import TrainingSettings, check_training

if TYPE_CHECKING:
    from bc2.train.run import Run


def training_stage(algorithm: Algorithm) -> Stage[TrainingSettings]:
    """The stage that trains by an algorithm."""

    def check(recipe: Recipe) -> None:
        check_training(recipe, algorithm)
        algorithm.check_inputs(recipe)
        if recipe.has(algorithm.section) and recipe.has(ModelConfig):
            _check_begun(TrainingSettings.of(recipe, algorithm=algorithm))

    return Stage(
        kind="checkpoint",
        version=algorithm.version,
        section=algorithm.section,
        also=(ModelConfig, ParallelConfig),
        inputs=algorithm.all_inputs,
        run=_run,
        find=_find,
        resolve=partial(TrainingSettings.of, algorithm=algorithm),
        fit=_fit,
        check=check,
        complete=partial(take_model, algorithm=algorithm),
    )


def _check_begun(settings: TrainingSettings) -> None:
    """Models that begin with what another recipe makes have its shape: known before it is trained.

    Raises:
        RecipeError: one has another shape.
    """
    named = {one.key: one for one in settings.algorithm.all_inputs if one.kind == "checkpoint"}
    for role in settings.models:
        needed = named.get(role.init or "")
        for source in sources_of(needed, settings, settings.recipe) if needed else ():
            if not isinstance(source, Recipe) or not source.has(ModelConfig):
                continue
            other = differences(source.get(ModelConfig), role.model)
            if other:
                raise RecipeError(
                    f"{settings.training.section}.{role.init} = {source.path} makes another "
                    f"model: {', '.join(other.values())}",
                    where=settings.recipe.where(("model", next(iter(other)))),
                    todo="make [model] equal in both recipes",
                )


def _fit(settings: TrainingSettings) -> None:
    settings.check_ranks(world_size())


def _find(settings: TrainingSettings, inputs: Inputs, registry: Registry) -> Artifact | None:
    from bc2.train.run import Run

    return Run.of_inputs(settings, inputs, registry, {}).finished(registry)


def _run(task: RunTask[TrainingSettings]) -> Made:
    from bc2.train.run import Run
    from bc2.train.train_run import train_run

    run = Run.of_inputs(task.settings, task.inputs, task.registry, task.recorded, task.command)
    known = None if task.fresh else run.finished(task.registry)
    if _all_found(run, known):
        assert known is not None
        return Made(known, anew=False)
    task.begin_work()
    artifact = train_run(run, task.registry, fresh=task.fresh)
    return Made(artifact, anew=artifact != known)


def _all_found(run: Run, known: Artifact | None) -> bool:
    """Whether it is finished on every rank alike: ranks may not see the same home.

    What is finished need not fit these ranks: a model that they begin with may be of others.
    """
    if world_size() == 1:
        return known is not None
    import torch

    from bc2.parallel.mesh import all_ranks
    from bc2.train.rendezvous import explain_lost_rank

    ranks = all_ranks(torch.device(run.config.device))
    with explain_lost_rank(ranks):
        digests = ranks.all_gather_object(known.digest if known else None)
    return known is not None and set(digests) == {known.digest}
