"""What a run reads of each source, and the limit on how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bc2.data.shards import TokenShards
from bc2.errors import RecipeError
from bc2.train.pretrain import token_inputs as module
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.token_inputs import TokenInputs, mixture_lines
from bc2.train.schedule import Schedule

#: Tokens: windows of 10 and the one after.
TOKENS = {"web.c00": 801, "web.c01": 201, "web.rest": 5, "law": 1001}
CARRIED = {"web.c00": 25, "web.c01": 15, "web.rest": 10, "law": 50}


def shards(weights: dict[str, int] | None = None, strata: bool = True) -> TokenShards:
    def entry(tokens: int) -> dict[str, Any]:
        shard = {"file": "f", "tokens": tokens}
        return {"tokens": tokens, "documents": 1, "bytes": 1, "shards": [shard]}

    facts: dict[str, Any] = {
        "dtype": "<u2", "vocab_size": 9, "eos_id": 2, "tokenizer": "",
        "splits": {"train": {name: entry(n) for name, n in TOKENS.items()}, "heldout": {}},
    }  # fmt: skip
    if strata:
        facts["strata"] = {name: name.split(".")[0] for name in TOKENS}
    if weights is not None:
        facts["weights"] = weights
    return TokenShards(Path(), facts)


def config(**more: Any) -> PretrainConfig:
    values = {"length": "40 steps", "batch_tokens": 100, "micro_batch": 2, "sequence_length": 10}
    schedule = module.PretrainConfig.model_fields["schedule"].default
    return PretrainConfig(**values, schedule=schedule.model_copy(update={"warmup": "1 steps"}),
                          **more)  # fmt: skip


def planned(found: TokenShards, settings: PretrainConfig) -> TokenInputs:
    mixture = module._mixture(found, settings)
    windows = sum(mixture.windows.values())
    schedule = Schedule.of(settings, epoch_tokens=windows * settings.sequence_length)
    module._check_epochs(settings, mixture, schedule.total)
    return TokenInputs(found, mixture, schedule, Path())


def shares(plan: TokenInputs) -> dict[str, float]:
    return {name: round(plan.mixture.share(name), 9) for name in TOKENS}


def test_the_corpus_weighs_unless_the_recipe_does():
    carried = shares(planned(shards(CARRIED), config()))
    assert carried == {"web.c00": 0.3125, "web.c01": 0.1875, "web.rest": 0, "law": 0.5}
    asked = shares(planned(shards(CARRIED), config(weights={"web": 2.0, "law": 8.0})))
    assert asked == {"web.c00": 0.125, "web.c01": 0.075, "web.rest": 0, "law": 0.8}


def test_shards_without_weights_go_on_in_proportion_to_windows():
    plan = planned(shards(strata=False), config())
    assert shares(plan) == {"web.c00": 0.4, "web.c01": 0.1, "web.rest": 0, "law": 0.5}
    assert shares(planned(shards(), config())) == shares(plan)


def test_what_is_read_is_shown_by_source():
    """400 samples: 125 of 80 windows, 75 of 20, 200 of 100."""
    plan = planned(shards(CARRIED), config())
    assert mixture_lines(config(), plan) == [
        "mixture: weights of the corpus",
        "  law: 50.00% of samples, 2.00 epochs",
        "  web: 50.00% of samples, 2.00 epochs; 3 strata, most often read: web.c01 3.75, "
        "web.c00 1.56; 1 shorter than a sample, left out",
    ]
    plain = shards(strata=False)
    lines = mixture_lines(config(), planned(plain, config()))
    assert lines[0] == "mixture: in proportion to tokens"
    assert lines[1:] == [
        "  law: 50.00% of samples, 2.00 epochs",
        "  web.c00: 40.00% of samples, 2.00 epochs",
        "  web.c01: 10.00% of samples, 2.00 epochs",
        "  web.rest: 0.00% of samples, 0.00 epochs",
    ]
    asked = config(weights={"web": 1.0, "law": 1.0})
    assert mixture_lines(asked, plan)[0] == "mixture: weights of the recipe"


def test_text_that_would_come_too_often():
    planned(shards(CARRIED), config(max_epochs=3.75))
    with pytest.raises(RecipeError) as caught:
        planned(shards(CARRIED), config(max_epochs=3.7))
    assert "web.c01 would be read 3.75 times; pretrain.max_epochs is 3.7" in str(caught.value)
    with pytest.raises(RecipeError, match=r"3\.75 times, and 2 more"):
        planned(shards(CARRIED), config(max_epochs=1.0))


def test_the_limit_is_not_part_of_the_key():
    assert config(max_epochs=2.0).keyed() == config().keyed()


def test_a_warm_up_as_long_as_the_run_is_refused():
    settings = config()
    long = settings.schedule.model_copy(update={"warmup": settings.length})
    with pytest.raises(RecipeError, match="does not end within the run"):
        planned(shards(CARRIED), settings.model_copy(update={"schedule": long}))
