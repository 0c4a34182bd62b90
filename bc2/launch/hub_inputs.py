"""Checkpoints that a recipe names on a hub: imported once, and from then on named by their refs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bc2.errors import RefError
from bc2.override import parse_override
from bc2.pipeline.table import stage_of
from bc2.process.signals import LAUNCHED
from bc2.ranks import world_size
from bc2.recipe import Recipe
from bc2.registry import Registry
from bc2.registry.refs import HUB, not_imported
from bc2.toml_file import KeyPath, dotted

#: Set for the ranks that a command starts: by name, the refs of what it imported for them.
IMPORTED = "BC2_IMPORTED"


@dataclass
class HubInputs:
    """The models of a hub that one command takes, each imported when it is first met."""

    registry: Registry
    refs: dict[str, str] = field(default_factory=dict)
    """By name, of those that are imported."""

    @classmethod
    def of(cls, registry: Registry) -> HubInputs:
        """With what the command has imported that started this rank, if this is one."""
        given = os.environ.get(IMPORTED, "{}") if LAUNCHED in os.environ else "{}"
        return cls(registry, json.loads(given))

    def export(self) -> None:
        """Hand what is imported on to the ranks that this process starts."""
        os.environ[IMPORTED] = json.dumps(self.refs)

    def pinned(self, recipe: Recipe) -> Recipe:
        """The recipe with a ref for each model of a hub that it names.

        Raises:
            RefError: this is one of several ranks, which would all import it.
            Bc2Error: it cannot be imported.
        """
        data = dict(recipe.data)
        for (section, key), named in hub_names(recipe).items():
            where = recipe.where((section, key))
            data[str(section)] = {**data[str(section)], key: self._exchanged(named, where)}
        return replace(recipe, data=data)

    def _exchanged(self, named: Any, where: str) -> Any:
        if isinstance(named, list):
            return [self._exchanged(one, where) for one in named]
        return self._ref(named, where) if _on_hub(named) else named

    def _ref(self, name: str, where: str) -> str:
        if name not in self.refs:
            self.refs[name] = self._found(name) or self._imported(name, where)
        return self.refs[name]

    def _found(self, name: str) -> str | None:
        """The ref of what was imported by this name before."""
        try:
            return self.registry.resolve(name, "checkpoint").ref
        except RefError:
            return None

    def _imported(self, name: str, where: str) -> str:
        if world_size() > 1:
            raise not_imported(name, where)
        # Imported now: what reads other libraries' files is needed by few runs.
        from bc2.convert.importing.import_model import import_model

        return import_model(self.registry, name).ref


def hub_names(recipe: Recipe) -> dict[KeyPath, Any]:
    """By setting, what a recipe names for the checkpoints that it takes, where a hub is in it."""
    stage = stage_of("checkpoint", recipe)
    if stage.section is None or not recipe.has(stage.section):
        return {}
    section = stage.section.section
    settings: Mapping[str, Any] = recipe.data[section]
    inputs = [needed.key for needed in stage.inputs if needed.kind == "checkpoint"]
    named = {key: settings[key] for key in inputs if key in settings}
    return {
        (section, key): value
        for key, value in named.items()
        if any(map(_on_hub, value if isinstance(value, list) else [value]))
    }


def pinned_overrides(overrides: Sequence[str], named: Recipe, pinned: Recipe) -> tuple[str, ...]:
    """The overrides with which the same recipe, read again, is the one with refs.

    A command passes them to the ranks it starts, and shows them where it says how to resume.

    Args:
        overrides: those that `named` was read with.
    """
    changed = list(hub_names(named))
    kept = [one for one in overrides if not any(_below(one, key) for key in changed)]
    # Quoted: sixteen digits may be a number.
    said = [f"{dotted(key)}={json.dumps(_at(pinned, key))}" for key in changed]
    return (*kept, *said)


def _below(override: str, key: KeyPath) -> bool:
    return parse_override(override)[0][: len(key)] == key


def _at(recipe: Recipe, key: KeyPath) -> Any:
    section, name = key
    return recipe.data[str(section)][name]


def _on_hub(named: Any) -> bool:
    return isinstance(named, str) and named.startswith(HUB)
