"""The table of the funnel's stages, in the order in which they run (Baichuan 2, figure 2).

A new stage needs a line here, a file in `stages`, a class in `settings`, and a key for its table in
`bc2.data.corpus_config.CorpusConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep.stages.base import PrepStage
from bc2.data.readers import source_language

#: Name of a stage -> its module and class, in the order in which stages run. A stage runs if the
#: recipe has its table, [corpus.NAME]; its module is imported only then.
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
    """Make the stages that a recipe asks for, in order, and check their settings.

    Raises:
        RecipeError, DataError: settings do not fit each other, or a file is missing.
    """
    stages = _stages(config)
    for stage in stages:
        stage.check()
    for stage in stages:
        stage.check_fit(config)
    return stages


def check_settings(config: CorpusConfig) -> None:
    """Check what needs no file: on any machine.

    Raises:
        RecipeError: settings do not fit each other.
    """
    for stage in _stages(config):
        stage.check_fit(config)


def passed_over(stages: Iterable[PrepStage], config: CorpusConfig) -> list[str]:
    """Which languages of the sources are strange to which stages: a line for each language."""
    told = {}
    for lang in dict.fromkeys(source_language(source) for source in config.sources):
        lacks = [(stage.name, stage.passes_over(lang)) for stage in stages]
        told[lang] = "; ".join(f"{name} {phrase}" for name, phrase in lacks if phrase)
    return [
        f"text {f'with lang = {lang!r}' if lang else 'without lang'}: {phrases}"
        for lang, phrases in told.items()
        if phrases
    ]


def _stages(config: CorpusConfig) -> list[PrepStage]:
    names = [name for name in PREP_STAGES if name == ALWAYS or getattr(config, name) is not None]
    return [stage_class(name).of(config) for name in names]


def stage_class(name: str) -> type[PrepStage]:
    """Import the class of a stage."""
    module, _, attribute = PREP_STAGES[name].partition(":")
    found: type[PrepStage] = getattr(import_module(module), attribute)
    return found


def stage_digests(stages: Iterable[PrepStage]) -> dict[str, dict[str, str]]:
    """Stage -> name -> hex SHA-256, for every file other than the text that affects the result."""
    found = {stage.name: stage.digests() for stage in stages}
    return {name: digests for name, digests in found.items() if digests}
