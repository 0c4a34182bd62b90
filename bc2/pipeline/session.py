"""Find what a recipe's stages make, or make and register it, upstream stages first.

An input of a stage is, in this order: what its settings name (a ref, or another recipe), what
this recipe itself makes, or the newest artifact of the kind, which is then said on stderr.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bc2.console import note
from bc2.errors import DataError
from bc2.files import lock_directory, make_directory
from bc2.pipeline.completion import completed
from bc2.pipeline.reach import recorded_recipe
from bc2.pipeline.sources import sources_of
from bc2.pipeline.stage import Input, Inputs, RunTask, Stage, Task
from bc2.pipeline.table import stage_of
from bc2.recipe import Recipe, Settings
from bc2.registry import Artifact, Draft, Kind, Registry, stage_key


@dataclass
class Session:
    """One command's use of the registry: what it made, and whether to make it anew."""

    registry: Registry
    fresh: bool = False
    """Make the asked-for artifact again even if it is registered."""
    before_work: Callable[[], None] = lambda: None
    """Called once, before the first artifact is made: checks that only matter if one is."""
    built: list[Artifact] = field(default_factory=list)
    """Artifacts that were made by this command, in order."""
    known: dict[str, Artifact] = field(default_factory=dict)
    """Artifacts found or made so far by stage key: two stages may share an input."""

    def obtain(
        self,
        kind: Kind,
        recipe: Recipe,
        *,
        settings: Any = None,
        options: Any = None,
        command: Sequence[str] = (),
    ) -> Artifact:
        """The artifact of `kind` that a recipe makes: found by its key, or made.

        Args:
            settings: of the stage, where the caller has resolved them already.
            options: handed to the stage, see `Task.options`.
            command: what a person types to go on with a run, see `RunTask.command`.

        Raises:
            RecipeError: the recipe is wrong; found before any work.
            RefError: an input that it names is not there; found before any work.
        """
        recipe = self._completed(kind, recipe)
        stage = stage_of(kind, recipe)
        settings = stage.settings_of(recipe) if settings is None else settings
        self._look_up(stage, settings, recipe)
        return self._obtain(stage, recipe, settings, self.fresh, options, command)

    def obtain_inputs(self, kind: Kind, recipe: Recipe, *, settings: Any = None) -> Inputs:
        """The inputs of the stage of `kind`, found or made, and not what it makes of them."""
        recipe = self._completed(kind, recipe)
        stage = stage_of(kind, recipe)
        settings = stage.read(recipe) if settings is None else settings
        self._look_up(stage, settings, recipe)
        return self._inputs(stage, settings, recipe)

    def find_inputs(self, kind: Kind, recipe: Recipe) -> Inputs | None:
        """The inputs of the stage of `kind` if all are registered, else None; makes nothing.

        Raises:
            RefError: an input that the recipe names is not there.
        """
        recipe = self._completed(kind, recipe)
        stage = stage_of(kind, recipe)
        settings = stage.read(recipe)
        found: dict[str, tuple[Artifact, ...]] = {}
        for needed in stage.inputs:
            sources = list(sources_of(needed, settings, recipe))
            inputs = [self._registered(needed.kind, source) for source in sources]
            found[needed.key] = tuple(one for one in inputs if one is not None)
            if len(found[needed.key]) < len(sources):
                return None
        return Inputs(found)

    def untrained(self, recipe: Recipe, settings: Any) -> Recipe | None:
        """The recipe of a checkpoint that the run of `recipe` begins with and that is not there."""
        for needed in stage_of("checkpoint", recipe).inputs:
            if needed.kind == "checkpoint":
                for source in sources_of(needed, settings, recipe):
                    if isinstance(source, Recipe) and not self._registered("checkpoint", source):
                        return source
        return None

    def _completed(self, kind: Kind, recipe: Recipe) -> Recipe:
        return completed(recipe, self.registry) if kind == "checkpoint" else recipe

    def _registered(self, kind: Kind, source: Recipe | str | None) -> Artifact | None:
        if source is None:
            return self.registry.newest(kind)
        if isinstance(source, str):
            return self.registry.resolve(source, kind)
        source = self._completed(kind, source)
        stage, inputs = stage_of(kind, source), self.find_inputs(kind, source)
        if inputs is None:
            return None
        settings = stage.read(source)
        if stage.find is not None:
            return stage.find(settings, inputs, self.registry)
        return self.registry.find(kind, self._key(stage, settings, inputs).hex)

    def obtain_recorded(
        self,
        kind: Kind,
        name: str,
        settings: Settings,
        inputs: Mapping[Kind, Iterable[Artifact]],
        *,
        options: Any = None,
    ) -> Artifact:
        """What a stage without a section makes: its settings are recorded in place of a recipe.

        Args:
            inputs: the parents, by kind.
            options: handed to the stage, see `Task.options`.
        """
        given = Inputs({kind: tuple(found) for kind, found in inputs.items()})
        stage = stage_of(kind)
        recorded = {"name": name, kind: settings.model_dump(mode="json")}
        key = self._key(stage, settings, given)
        return self._found_or_made(
            _Making(stage, name, settings, given, recorded, key, options), self.fresh
        )

    def _look_up(self, stage: Stage[Any], settings: Any, recipe: Recipe) -> None:
        """Every input that must be there already is there: known before anything is made.

        Raises:
            RefError: it is not.
            RecipeError: a recipe of an upstream stage is wrong.
        """
        if stage.check is not None:
            stage.check(recipe)
        for needed in stage.inputs:
            for source in sources_of(needed, settings, recipe):
                if isinstance(source, Recipe):
                    upstream = stage_of(needed.kind, source)
                    self._look_up(upstream, self._settings(upstream, source), source)
                elif source is not None:
                    self.registry.resolve(source, needed.kind)
                else:
                    self.registry.newest(needed.kind)

    def _settings(self, stage: Stage[Any], recipe: Recipe) -> Any:
        """What the recipe of an input says of its stage. It need fit this process only if it is
        yet to be made: a model may have been trained on other ranks.

        Raises:
            RecipeError: it is wrong, or does not fit the ranks.
        """
        settings = stage.read(recipe)
        if stage.fit is not None and self._registered(stage.kind, recipe) is None:
            stage.fit(settings)
        return settings

    def _inputs(self, stage: Stage[Any], settings: Any, recipe: Recipe) -> Inputs:
        return Inputs(
            {
                needed.key: tuple(
                    self._input(needed, source) for source in sources_of(needed, settings, recipe)
                )
                for needed in stage.inputs
            }
        )

    def _input(self, needed: Input[Any], source: Recipe | str | None) -> Artifact:
        if isinstance(source, Recipe):
            stage = stage_of(needed.kind, source)
            settings = self._settings(stage, source)
            return self._obtain(stage, source, settings, False, None, ())
        if source is not None:
            return self.registry.resolve(source, needed.kind)
        newest = self.registry.newest(needed.kind)
        note(f"the recipe names no {needed.kind}: taking the newest, {newest.title} ({newest.ref})")
        return newest

    def _obtain(
        self, stage: Stage[Any], recipe: Recipe, settings: Any, fresh: bool, options: Any,
        command: Sequence[str],
    ) -> Artifact:  # fmt: skip
        inputs = self._inputs(stage, settings, recipe)
        recorded = recorded_recipe(recipe, stage.kind, settings)
        if stage.run is not None:
            made = stage.run(
                RunTask(
                    recipe.name,
                    settings,
                    inputs,
                    recorded,
                    self.registry,
                    fresh,
                    self._begin_work,
                    command,
                )
            )
            if made.anew:
                self.built.append(made.artifact)
            else:
                _say_found(made.artifact)
            return made.artifact
        key = self._key(stage, settings, inputs)
        making = _Making(stage, recipe.name, settings, inputs, recorded, key, options)
        return self._found_or_made(making, fresh)

    def _begin_work(self) -> None:
        self.registry.check_writable()
        check, self.before_work = self.before_work, lambda: None
        check()

    def _key(self, stage: Stage[Any], settings: Any, inputs: Inputs) -> _Key:
        identity = stage.identity_of(settings, self.registry.home)
        return _Key(identity, stage_key(stage.kind, stage.version, identity, inputs.digests()))

    def _found_or_made(self, making: _Making, fresh: bool) -> Artifact:
        """One process at a time makes what has a key; the others wait, and find it."""
        found = self._find(making, fresh)
        if found is not None:
            return found
        self._begin_work()
        folder = self.registry.work / f"{making.stage.kind}-{making.key.hex}"
        make_directory(folder)
        with lock_directory(folder, wait=True):
            # Another process may have made it while this one waited.
            found = self._find(making, fresh)
            if found is None:
                if fresh:  # what is half done is not gone on with either
                    _empty(folder)
                found = making.make(self.registry, folder / "work")
                self.built.append(found)
                self.known[making.key.hex] = found
            _empty(folder)
            return found

    def _find(self, making: _Making, fresh: bool) -> Artifact | None:
        key = making.key.hex
        if key in self.known:
            return self.known[key]
        found = None if fresh else self.registry.find(making.stage.kind, key)
        if found is not None:
            _say_found(found)
            self.known[key] = found
        return found


@dataclass(frozen=True)
class _Key:
    """A stage's key, and what it was made of."""

    identity: Mapping[str, Any]
    hex: str


@dataclass(frozen=True)
class _Making:
    """Everything that making one artifact takes."""

    stage: Stage[Any]
    name: str
    settings: Any
    inputs: Inputs
    recorded: Mapping[str, Any]
    key: _Key
    options: Any

    def make(self, registry: Registry, work: Path) -> Artifact:
        """Make and register it. Raises: DataError if what it reads changed meanwhile."""
        registry.check_publishing(self.stage.kind, self.name)
        note(f"making {self.stage.kind}/{self.name}")
        draft = Draft(
            kind=self.stage.kind,
            name=self.name,
            key=self.key.hex,
            parents=self.inputs.digests(),
            recipe=self.recorded,
        )
        with ExitStack() as held:
            for parent in self.inputs.all():
                held.enter_context(parent.hold())
            staged = held.enter_context(registry.stage(draft))
            facts = self._write(staged.path, registry, work)
            return staged.publish(facts=facts)

    def _write(self, out: Path, registry: Registry, work: Path) -> Mapping[str, Any]:
        assert self.stage.make is not None
        task = Task(self.settings, self.inputs, out, work, registry, self.options)
        facts = self.stage.make(task)
        if self.stage.identity_of(self.settings, registry.home) != self.key.identity:
            # What was read is kept under the key of what is gone.
            shutil.rmtree(work, ignore_errors=True)
            raise DataError(
                "an input changed while it was read", todo="run it again when the files rest"
            )
        return facts


def _empty(folder: Path) -> None:
    """Remove what attempts before this one had finished; the folder itself is the lock."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _say_found(artifact: Artifact) -> None:
    note(f"{artifact.title} is registered already ({artifact.ref})")
