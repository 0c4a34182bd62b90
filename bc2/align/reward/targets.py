"""The targets of the absolute loss, and how much each counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bc2.align.pairs.pair_inputs import known_sources
from bc2.align.reward.reward_config import RewardConfig
from bc2.align.reward.reward_objective import ALPHA, TARGET
from bc2.data.pairs.pairs import Pairs, PairTable
from bc2.errors import RecipeError


def target_fields(
    table: PairTable, pairs: Pairs, config: RewardConfig
) -> dict[str, npt.NDArray[np.float64]]:
    """By name [P, 2], what `PairwiseScores` needs of each answer; α is 0 where there is no score.

    Raises:
        RecipeError: α is above 0 where no pair has scores.
    """
    where = f"{config.section}.alpha_of"
    known_sources(pairs, config.alpha_of, where)
    scored: npt.NDArray[np.bool_] = ~np.any(np.isnan(table.targets), axis=1)
    for name, alpha in config.alpha_of.items():
        mine = table.source_ids == pairs.sources.index(name)
        if alpha and not scored[mine].any():
            raise RecipeError(
                f"{where}.{name} = {alpha:g}, and the source has no scores",
                where=where,
                todo="leave it out, or give answers with scores",
            )
    if config.alpha and not scored.any():
        raise RecipeError(
            f"{config.section}.alpha = {config.alpha:g}, and no source of the pairs has scores",
            where=f"{config.section}.alpha",
            todo="set alpha = 0, or give answers with scores",
        )
    by_source = np.array([config.alpha_of.get(name, config.alpha) for name in pairs.sources])
    alpha_of = np.where(scored, by_source[table.source_ids], 0.0)
    return {
        TARGET: np.where(scored[:, None], table.targets, 0.0),
        ALPHA: np.stack([alpha_of, alpha_of], axis=1),
    }
