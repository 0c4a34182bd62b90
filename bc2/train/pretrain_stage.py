"""[pretrain] and [model] -> checkpoint: a trained base model and its unfinished checkpoints."""

from __future__ import annotations

import json

from bc2.data.source_names import check_source_weights
from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.pipeline.stage import Input, Made, RunTask, Stage
from bc2.ranks import world_size
from bc2.recipe import Recipe
from bc2.registry import Artifact
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.training_settings import VERSION, TrainingSettings, check_training


def _check(recipe: Recipe) -> None:
    check_training(recipe)
    if recipe.has(PretrainConfig) and recipe.has(ModelConfig):
        weights = recipe.get(PretrainConfig).weights
        key = ("pretrain", "weights")
        check_source_weights(weights, recipe, "checkpoint", key, strata=True)


def _fit(settings: TrainingSettings) -> None:
    settings.check_ranks(world_size())


def _run(task: RunTask[TrainingSettings]) -> Made:
    from bc2.train.run import Run
    from bc2.train.train_run import pretrain

    tokens = task.inputs.one("tokens")
    _check_vocabulary(task.settings, tokens)
    run = Run.of_inputs(task.settings, task.inputs, task.registry, task.recorded, task.command)
    known = None if task.fresh else run.finished(task.registry)
    if known is not None and world_size() == 1:
        return Made(known, anew=False)
    task.begin_work()
    # Ranks find out together whether it is finished: they may not see the same home.
    with tokens.hold():
        artifact = pretrain(run, task.registry, fresh=task.fresh)
    return Made(artifact, anew=artifact != known)


def _check_vocabulary(settings: TrainingSettings, tokens: Artifact) -> None:
    """The embedding has a row for every id in the token shards."""
    pieces = json.loads(tokens.file("tokens.json").read_text(encoding="utf-8"))["vocab_size"]
    if settings.model.vocab_size < pieces:
        raise RecipeError(
            f"model.vocab_size = {settings.model.vocab_size} is smaller than the {pieces} "
            f"pieces of the tokenizer of {tokens.title}",
            where=settings.recipe.where(("model", "vocab_size")),
            todo=f"set model.vocab_size = {pieces}",
        )


STAGE = Stage(
    kind="checkpoint",
    version=VERSION,
    section=PretrainConfig,
    also=(ModelConfig, ParallelConfig),
    inputs=(Input("tokens", lambda settings: settings.pretrain.tokens),),
    run=_run,
    resolve=TrainingSettings.of,
    fit=_fit,
    check=_check,
)
