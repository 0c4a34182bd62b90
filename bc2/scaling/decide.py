"""What a law is for: the loss of a run that was not made, and the best size for a budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bc2.console import warn
from bc2.data.corpus_config import CorpusConfig
from bc2.errors import DataError, RecipeError, RefError, UsageError
from bc2.model.model_config import ModelConfig
from bc2.pipeline.session import Session
from bc2.recipe import Recipe, Section
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import parent_of_kind
from bc2.scaling.forms import FORMS
from bc2.scaling.intervals import Interval
from bc2.scaling.law import Law
from bc2.scaling.law_config import LawSettings
from bc2.scaling.shapes import nearest_shape
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.train.duration import Duration
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.training_settings import TrainingSettings

#: A prediction for more than this times the largest compute that was fitted is warned of.
FAR = 100.0

#: Rows of the embedding of a shape: Baichuan 2's tokenizer.
VOCAB_SIZE = 125_696


@dataclass(frozen=True)
class Prediction:
    """The final loss of a run."""

    target: str
    params: float
    tokens: float
    flops: float
    """These three in the law's own conventions."""
    law: Interval
    """The law's value."""
    loss: Interval
    """A measurement: the law's value and the noise between runs."""
    reach: float
    """FLOPs over those of the largest run that was fitted."""
    counted_flops: float
    """With attention and head, as the model counts them."""
    measured: float | None = None
    """The loss of the run, if it is registered."""

    @property
    def miss(self) -> float | None:
        """Measured over predicted loss, less one."""
        return None if self.measured is None else self.measured / self.loss.value - 1

    @property
    def inside(self) -> bool | None:
        """Whether the measured loss is in the interval of a measurement."""
        if self.measured is None:
            return None
        return self.loss.low <= self.measured <= self.loss.high

    def as_json(self) -> dict[str, Any]:
        return {
            "measured": self.measured, "miss": self.miss, "inside": self.inside,
            "target": self.target, "params": self.params, "tokens": self.tokens,
            "flops": self.flops, "counted_flops": self.counted_flops,
            "loss": self.loss.as_json(), "law": self.law.as_json(), "reach": self.reach,
        }  # fmt: skip


@dataclass(frozen=True)
class Allocation:
    """The best size and data for a budget, and the nearest shape."""

    flops: float
    params: Interval
    tokens: Interval
    loss: Interval
    """A measurement at the optimum."""
    shape: ModelConfig
    shape_tokens: float
    """What is left of the budget for the nearest shape."""
    shape_loss: float

    def as_json(self) -> dict[str, Any]:
        shape = self.shape
        return {
            "flops": self.flops, "params": self.params.as_json(), "tokens": self.tokens.as_json(),
            "loss": self.loss.as_json(),
            "shape": {
                "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
                "num_layers": shape.num_layers, "num_heads": shape.num_heads,
                "params_non_embedding": shape.num_params_non_embedding(),
                "params_total": shape.num_params(),
                "tokens": self.shape_tokens, "loss": self.shape_loss,
            },
        }  # fmt: skip


def predict(law: Law, recipe: Recipe) -> Prediction:
    """The final loss of what a recipe trains.

    Raises:
        RecipeError: the recipe does not say how many tokens it trains on.
        UsageError: the law does not say how it counts parameters or FLOPs.
    """
    check_prediction(law.settings)
    model, training = recipe.get(ModelConfig), recipe.get(PretrainConfig)
    tokens = tokens_of(recipe)
    conventions = law.points.conventions
    params = float(
        model.num_params() if conventions.params == "total" else model.num_params_non_embedding()
    )
    counted = float(tokens * model.flops_per_token(training.sequence_length))
    flops = counted if conventions.flops == "counted" else 6 * params * tokens
    own, measured = law.loss_at(params, tokens, flops)
    reach = flops / law.largest_flops
    _warn_far(reach, measured)
    return Prediction(recipe.name, params, tokens, flops, own, measured, reach, counted)


def measured_loss(registry: Registry, recipe: Recipe) -> float | None:
    """The held-out loss of the run of a recipe, nats a token; None if it is not registered."""
    from bc2.train.run import Run

    try:
        inputs = Session(registry).find_inputs("checkpoint", recipe)
    except (DataError, RefError):
        inputs = None  # its text is not on this machine, so neither is its run
    if inputs is None:
        return None
    run = Run.of_inputs(TrainingSettings.of(recipe), inputs, registry, recipe.resolved())
    found = run.finished(registry)
    loss = found.manifest.facts.get("heldout_loss") if found else None
    return None if loss is None else float(loss)


def _warn_far(reach: float, loss: Interval) -> None:
    if reach > FAR:
        warn(
            f"this is {reach:,.0f} times the largest compute that was fitted; the interval "
            f"{loss.low:.3f} to {loss.high:.3f} holds only if the form does"
        )


def check_prediction(settings: LawSettings) -> None:
    """What a law predicts follows from its settings: known before it is fitted.

    Raises:
        UsageError: it says no losses, or not how it counts parameters or FLOPs.
    """
    _refuse_isoflop(settings, "--predict")
    if settings.count_params != "unstated":
        return
    todo = "say it with --count-params non-embedding or total"
    if "params" in FORMS[settings.form].variables:
        what = "the law's table does not say whether its parameters count embeddings"
        raise UsageError(what, where="--predict", todo=todo)
    if settings.count_flops == "6ND":
        what = "the law's C is 6ND, and its table does not say which parameters N counts"
        raise UsageError(what, where="--predict", todo=todo)


def check_budget(settings: LawSettings, flops: float) -> None:
    """Whether a law of these settings says how a budget is shared.

    Raises:
        UsageError: it does not, or the budget is no number of FLOPs.
    """
    if not 0 < flops < float("inf"):
        raise UsageError(f"--budget {flops:g} is no number of FLOPs", todo="e.g. --budget 1e21")
    _refuse_isoflop(settings, "--budget")
    if settings.form != "chinchilla":
        raise UsageError(
            f"a law of the form {FORMS[settings.form].formula} does not say how a budget is shared "
            "between parameters and tokens",
            where="--budget",
            todo="fit --form chinchilla to runs that vary both apart",
        )
    if settings.count_flops != "6ND":
        raise UsageError(
            "the budget is counted as 6ND, and the law's FLOPs are counted otherwise",
            where="--budget",
            todo="fit with FLOPs of 6ND: leave the flops column out, or --count-flops 6ND",
        )


def _refuse_isoflop(settings: LawSettings, where: str) -> None:
    if settings.form == "isoflop":
        raise UsageError(
            "an IsoFLOP law has optima and no losses",
            where=where,
            todo="fit --form chinchilla to the same points",
        )


def tokens_of(recipe: Recipe) -> float:
    """Tokens that a recipe trains on. Raises: RecipeError if it does not say."""
    training = recipe.get(PretrainConfig)
    length = Duration.parse(training.length)
    if length.unit == "epochs":
        raise RecipeError(
            f"a length of {training.length} is no number of tokens before the corpus is there",
            where=recipe.where(("pretrain", "length")),
            todo="predict with --set 'pretrain.length=1B tokens'",
        )
    steps = length.steps(batch_tokens=training.batch_tokens, epoch_tokens=0)
    return float(steps * training.batch_tokens)


def allocate(law: Law, flops: float, vocab_size: int) -> Allocation:
    """The best N and D for a budget of FLOPs, and the nearest real shape.

    Raises:
        UsageError: the form does not say; or the best size is that of no shape.
    """
    check_budget(law.settings, flops)
    params, tokens = law.optimum(flops)
    total = law.points.conventions.params == "total"
    shape = nearest_shape(params.value, vocab_size, total=total)
    _, loss = law.loss_at(params.value, tokens.value, flops)
    _warn_far(flops / law.largest_flops, loss)
    size = float(shape.num_params() if total else shape.num_params_non_embedding())
    left = flops / 6 / size
    return Allocation(
        flops, params, tokens, loss, shape, left, law.loss_at(size, left, flops)[0].value
    )


def warn_of_other_text(registry: Registry, runs: list[Artifact], recipe: Recipe) -> None:
    """Warn, by name, of another tokenizer or corpus than that of the law's runs: losses of other
    text, or in other tokens, are not the law's."""
    for what in _other_text(registry, runs[0], recipe):
        warn(f"{recipe.name} has another {what}: the law's loss is not that of its text")


def _other_text(registry: Registry, run: Artifact, recipe: Recipe) -> Iterator[str]:
    named = recipe.get(PretrainConfig).tokens
    own = parent_of_kind(registry, run, "tokens")
    if named is not None and not named.endswith(".toml"):
        try:
            other = registry.resolve(named, "tokens")
        except RefError:
            yield f"set of token shards ({named}, not here) than {own.title}"
            return
        if other.digest != own.digest:
            yield f"set of token shards ({other.title} {other.ref}) than {own.title} ({own.ref})"
        return
    parents: dict[str, tuple[type[Section], Artifact]] = {
        "tokenizer": (TokenizerConfig, parent_of_kind(registry, run, "tokenizer")),
        "corpus": (CorpusConfig, parent_of_kind(registry, own, "corpus")),
    }
    for what, (section, artifact) in parents.items():
        if not _same_section(recipe, section, artifact):
            yield f"{what} (its own [{section.section}]) than {artifact.title}"


def _same_section(recipe: Recipe, section: type[Section], artifact: Artifact) -> bool:
    recorded = artifact.manifest.recipe.get(section.section)
    if recorded is None or not recipe.has(section):
        return False
    theirs = section.model_validate_json(json.dumps(recorded), strict=True)
    return bool(theirs.keyed() == recipe.get(section).keyed())
