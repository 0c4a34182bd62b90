"""The models that a [merge] names, found to be such as can be merged before weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from bc2.console import note
from bc2.convert.merging.merge_config import MergeConfig
from bc2.convert.merging.one_base import check_one_base
from bc2.errors import RecipeError, RefError
from bc2.generate.generation_defaults import GENERATION_FILE
from bc2.model.model_config import ModelConfig, differences
from bc2.model.store import CONFIG, load_config
from bc2.recipe import Recipe
from bc2.registry import Artifact, Registry, Role
from bc2.tokenizer.tokenizer_files import CHAT_FILE, TOKENIZER_FILES, tokenizer_path

#: Of what is a whole model that says next tokens, or scores.
ROLES: tuple[Role, ...] = ("base", "chat", "merged", "reward")

#: How models talk: where those that have such a file differ, one is to be chosen.
_SPEECH = (CHAT_FILE, GENERATION_FILE)


@dataclass(frozen=True)
class ChosenModels:
    """The models of a merge: of one shape, one tokenizer and one base."""

    config: MergeConfig
    models: tuple[Artifact, ...]
    base: Artifact | None

    @classmethod
    def of(cls, recipe: Recipe, registry: Registry) -> ChosenModels:
        """Find what a recipe names.

        Raises:
            RecipeError: they cannot be merged, or the section is wrong.
            RefError: a ref does not answer, or not with a whole model.
            DataError: one has no tokenizer.
            IntegrityError: a configuration is not what was published.
        """
        config = recipe.get(MergeConfig)
        models = tuple(
            _resolve(registry, model.ref, recipe.where(("merge", "models", place, "ref")))
            for place, model in enumerate(config.models)
        )
        base = None
        if config.base is not None:
            base = _resolve(registry, config.base, recipe.where(("merge", "base")))
        found = cls(config, models, base)
        found._check(recipe, registry)
        return found

    @property
    def all(self) -> tuple[Artifact, ...]:
        """The models, and the base last: parents in the order that lineage is read in."""
        return self.models if self.base is None else (*self.models, self.base)

    @cached_property
    def shape(self) -> ModelConfig:
        """Of the merged model; its context is the shortest of the models'."""
        configs = [load_config(model.path) for model in self.models]
        shortest = min(config.context_length for config in configs)
        return configs[0].model_copy(update={"context_length": shortest})

    def texts(self) -> Iterator[tuple[str, Artifact]]:
        """The files beside the weights, and whose they are.

        Raises:
            RecipeError: the models have different ones, and none is chosen.
        """
        for name in TOKENIZER_FILES:
            if name in self.models[0].files():
                yield name, self.models[0]
        for name in _SPEECH:
            owner = self._owner(name)
            if owner is not None:
                yield name, owner

    def _owner(self, name: str) -> Artifact | None:
        if self.config.speech is not None:
            refs = [model.ref for model in self.config.models]
            chosen = self.models[refs.index(self.config.speech)]
            return chosen if name in chosen.files() else None
        owners = [model for model in self.models if name in model.files()]
        if len({model.entry(name).sha256 for model in owners}) > 1:
            raise RecipeError(
                f"the models have different {name}: {', '.join(one.title for one in owners)}",
                todo=f"choose whose is kept: merge.speech = {self.config.models[0].ref!r}",
            )
        return owners[0] if owners else None

    def _check(self, recipe: Recipe, registry: Registry) -> None:
        self._check_each_once(recipe)
        first = self.models[0]
        for place, other in enumerate(self.all):
            key = ("merge", "models", place) if place < len(self.models) else ("merge", "base")
            _check_alike(first, other, recipe.where(key))
        check_one_base(registry, self.models, self.base, recipe, given=self.config.same_base)
        for _ in self.texts():
            pass

    def _check_each_once(self, recipe: Recipe) -> None:
        digests = [one.digest for one in self.all]
        for place, one in enumerate(self.all):
            if one.digest in digests[:place]:
                what = "the base is one of the models" if one == self.base else "it is there twice"
                key = ("merge", "base") if one == self.base else ("merge", "models", place)
                raise RecipeError(
                    f"{what}: {one.title} ({one.ref})",
                    where=recipe.where(key),
                    todo="leave it out once; a weight says how much of a model there is to be",
                )

    def tell(self) -> None:
        """Say on stderr what is kept where the models differ in what is no weight."""
        contexts = {load_config(model.path).context_length for model in self.models}
        if len(contexts) > 1:
            note(f"context_length differs: {self.shape.context_length:,}, the shortest, is kept")
        for name, owner in self.texts():
            if name in _SPEECH and any(name not in model.files() for model in self.models):
                note(f"{name} is that of {owner.title}")


def _resolve(registry: Registry, ref: str, where: str) -> Artifact:
    """A whole model by its ref. Raises: RefError, with the place in the recipe."""
    try:
        return registry.resolve(ref, "checkpoint", ROLES)
    except RefError as error:
        todo = error.todo
        if _is_adapter(registry, ref):
            todo = f"fold it into its base first: bc2 merge --adapter {ref}"
        raise RefError(error.what, where=where, todo=todo) from None


def _is_adapter(registry: Registry, ref: str) -> bool:
    try:
        return registry.resolve(ref, "checkpoint").role == "adapter"
    except RefError:
        return False


def _check_alike(first: Artifact, other: Artifact, where: str) -> None:
    """Raises: RecipeError if two models cannot be added, or say other things by an id."""
    for one in (first, other):
        one.file(CONFIG)
    heads = [load_config(one.path).head for one in (first, other)]
    if "classes" in heads or heads[0] != heads[1]:
        raise RecipeError(
            f"{first.title} has a {heads[0]} head, and {other.title} a {heads[1]} head",
            where=where,
            todo="merge models that all say next tokens, or all scores (`bc2 reward`)",
        )
    unlike = differences(load_config(first.path), load_config(other.path))
    if unlike:
        raise RecipeError(
            f"{first.title} and {other.title} have different shapes: {', '.join(unlike.values())}",
            where=where,
            todo="merge models that were trained from one",
        )
    if _tokenizer(first) != _tokenizer(other):
        raise RecipeError(
            f"{first.title} and {other.title} have different tokenizers, and the same rows would "
            "be of different tokens",
            where=where,
            todo="merge models that were trained with one tokenizer",
        )


def _tokenizer(artifact: Artifact) -> tuple[str, str]:
    name = tokenizer_path(artifact).name
    return name, artifact.entry(name).sha256
