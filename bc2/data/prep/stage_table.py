"""The stages of the funnel, in the order of Baichuan 2, figure 2: from [corpus] to what runs.

A new stage is a line here, its file in `stages`, its settings in `settings` and the key of its
table in `bc2.data.corpus_config.CorpusConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep.stages.base import PrepStage

#: Name of a stage -> the module and class that do it, in the order in which stages run. A stage
#: runs if the recipe has its table, [corpus.NAME]; its module is imported only then.
PREP_STAGES = {
    "normalise": "bc2.data.prep.stages.normalise:NormaliseStage",
    "exact": "bc2.data.prep.stages.exact:ExactStage",
    "heuristics": "bc2.data.prep.stages.heuristics:HeuristicsStage",
    "quality": "bc2.data.prep.stages.quality:QualityStage",
    "passages": "bc2.data.prep.stages.passages:PassagesStage",
    "near": "bc2.data.prep.stages.near:NearStage",
    "dense": "bc2.data.prep.stages.dense:DenseStage",
    "safety": "bc2.data.prep.stages.safety:SafetyStage",
    "decontaminate": "bc2.data.prep.stages.decontaminate:DecontaminateStage",
    "clusters": "bc2.data.prep.stages.clusters:ClustersStage",
    "weights": "bc2.data.prep.stages.weights:WeightsStage",
}

#: The stage that has no table and always runs.
ALWAYS = "exact"


def build_stages(config: CorpusConfig) -> list[PrepStage]:
    """The stages that a recipe asks for, in order, checked.

    Raises:
        RecipeError, DataError: settings that do not fit each other, or a file that is missing.
    """
    names = [name for name in PREP_STAGES if name == ALWAYS or getattr(config, name) is not None]
    stages = [stage_class(name).of(config) for name in names]
    for stage in stages:
        stage.check()
    for stage in stages:
        stage.check_fit(config)
    return stages


def stage_class(name: str) -> type[PrepStage]:
    """The class of a stage of the table, imported."""
    module, _, attribute = PREP_STAGES[name].partition(":")
    found: type[PrepStage] = getattr(import_module(module), attribute)
    return found


def stage_digests(stages: Iterable[PrepStage]) -> dict[str, dict[str, str]]:
    """By stage, the SHA-256 of every file, other than the text, that affects its result."""
    found = {stage.name: stage.digests() for stage in stages}
    return {name: digests for name, digests in found.items() if digests}
