"""From [corpus] to the stages of the funnel, in the order of Baichuan 2, figure 2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bc2.data.config import CorpusConfig
from bc2.data.prep.stages.base import Stage
from bc2.data.prep.stages.clusters import ClustersStage
from bc2.data.prep.stages.decontaminate import DecontaminateStage
from bc2.data.prep.stages.dense import DenseStage
from bc2.data.prep.stages.exact import ExactStage
from bc2.data.prep.stages.heuristics import HeuristicsStage
from bc2.data.prep.stages.near import NearStage
from bc2.data.prep.stages.normalise import NormaliseStage
from bc2.data.prep.stages.passages import PassagesStage
from bc2.data.prep.stages.quality import QualityStage
from bc2.data.prep.stages.safety import SafetyStage
from bc2.data.prep.stages.weights import WeightsStage


def build_stages(config: CorpusConfig) -> list[Stage]:
    """The stages whose tables the recipe has; exact deduplication always.

    Raises:
        RecipeError, DataError: settings that do not fit each other, or a file that is missing.
    """
    stages = list(_stages(config))
    for stage in stages:
        stage.check()
    if config.weights is not None:
        WeightsStage(config.weights).check_fit(
            sources=[source.name for source in config.sources],
            quality=config.quality is not None,
            clusters=config.clusters is not None,
        )
    return stages


def _stages(config: CorpusConfig) -> Iterator[Stage]:
    if config.normalise is not None:
        yield NormaliseStage(config.normalise)
    yield ExactStage(as_read=config.normalise is None)
    if config.heuristics is not None:
        yield HeuristicsStage(config.heuristics)
    if config.quality is not None:
        yield QualityStage(config.quality)
    if config.passages is not None:
        yield PassagesStage(config.passages)
    if config.near is not None:
        yield NearStage(config.near)
    if config.dense is not None:
        yield DenseStage(config.dense)
    if config.safety is not None:
        yield SafetyStage(config.safety)
    if config.decontaminate is not None:
        yield DecontaminateStage(config.decontaminate)
    if config.clusters is not None:
        yield ClustersStage(config.clusters)
    if config.weights is not None:
        yield WeightsStage(config.weights)


def stage_digests(stages: Iterable[Stage]) -> dict[str, dict[str, str]]:
    """By stage, the SHA-256 of every file beside the text that affects its result."""
    found = {stage.name: stage.digests() for stage in stages}
    return {name: digests for name, digests in found.items() if digests}
