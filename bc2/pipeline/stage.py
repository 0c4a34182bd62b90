"""A stage: what makes artifacts of a kind, declared beside the code that makes them.

A stage is data and two or three functions. It says which inputs it takes and what its results
depend on; `bc2.pipeline.session` finds the inputs, works out the key, locks, and registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from bc2.recipe import Recipe, Section, Settings
from bc2.registry import Artifact, Kind, Registry

#: What a stage works with: its section of the recipe, or several that were checked together.
S = TypeVar("S")


@dataclass(frozen=True)
class Input(Generic[S]):
    """Artifacts of one kind that a stage takes."""

    kind: Kind
    named: Callable[[S], str | Sequence[str] | None]
    """What the settings name: a ref, a recipe that makes it, several of them, or None."""
    many: bool = False
    """Whether it takes several; all that are named, in their order."""
    name: str = ""
    """The setting that names it, and what `Inputs` calls it; empty: as the kind."""
    optional: bool = False
    """Whether nothing is taken where nothing is named, instead of what the recipe itself makes or
    the newest."""

    @property
    def key(self) -> str:
        """Its name among the inputs of its stage."""
        return self.name or self.kind


@dataclass(frozen=True)
class Inputs:
    """The artifacts that a stage was given, by `Input.key`, in the order of its declaration."""

    by_name: Mapping[str, tuple[Artifact, ...]] = field(default_factory=dict)

    def one(self, name: str) -> Artifact:
        """The only artifact of an input."""
        (artifact,) = self.by_name[name]
        return artifact

    def get(self, name: str) -> Artifact | None:
        """The artifact of an optional input, if there is one."""
        return next(iter(self.by_name.get(name, ())), None)

    def all(self) -> tuple[Artifact, ...]:
        """Every artifact: the parents of what is made, in order."""
        return tuple(artifact for found in self.by_name.values() for artifact in found)

    def digests(self) -> tuple[str, ...]:
        """Their digests, 64 hex digits each: part of the stage's key."""
        return tuple(artifact.digest for artifact in self.all())


@dataclass(frozen=True)
class Task(Generic[S]):
    """What `Stage.make` is given."""

    settings: S
    inputs: Inputs
    out: Path
    """An empty folder: what is written here becomes the artifact."""
    work: Path
    """A folder of this key: what is left here by an attempt that died serves the next one. It is
    removed when the artifact is registered."""
    registry: Registry
    options: Any = None
    """How to make it, as the command was told (workers, an engine); no part of the result."""


@dataclass(frozen=True)
class RunTask(Generic[S]):
    """What `Stage.run` is given."""

    name: str
    settings: S
    inputs: Inputs
    recorded: Mapping[str, Any]
    """The resolved recipe, to be recorded with what is made."""
    registry: Registry
    fresh: bool
    """Train anew even if it is registered or half done."""
    begin_work: Callable[[], None]
    """Called before anything is trained: the last checks, such as whether it fits in memory."""
    command: Sequence[str] = ()
    """What a person types to go on with it."""


@dataclass(frozen=True)
class Made:
    """What `Stage.run` ended in."""

    artifact: Artifact
    anew: bool
    """Made now, and not found."""


@dataclass(frozen=True)
class Stage(Generic[S]):
    """How artifacts of a kind are made: by `make` in one go, or by `run` with checkpoints.

    The key of what is made holds `kind`, `version`, what `identity` returns and the digests of
    the inputs. Results must depend on nothing else.
    """

    kind: Kind
    version: int
    """Raised when the same settings and inputs would make something else."""
    section: type[Section] | None = None
    """The recipe's table; None: the settings are given and recorded in place of a recipe."""
    also: tuple[type[Section], ...] = ()
    """Further tables that it reads, such as the model's shape."""
    inputs: tuple[Input[S], ...] = ()
    make: Callable[[Task[S]], Mapping[str, Any]] | None = None
    """Writes the payload into `Task.out` and returns the facts to record."""
    run: Callable[[RunTask[S]], Made] | None = None
    """Instead of `make`: registers its artifacts itself, and goes on from unfinished ones."""
    find: Callable[[S, Inputs, Registry], Artifact | None] | None = None
    """Of one with `run`: what it has registered and finished of these settings and inputs."""
    resolve: Callable[[Recipe], S] | None = None
    """Settings from a recipe, if they are more than its section. Everything that can be known to
    be wrong before any work, on any machine, is found here."""
    fit: Callable[[S], None] | None = None
    """Raises `RecipeError` for settings that do not fit the ranks of this process."""
    check: Callable[[Recipe], None] | None = None
    """Raises `RecipeError` for sections that contradict each other, on any machine."""
    identity: Callable[[S, Path], Mapping[str, Any]] | None = None
    """``identity(settings, home)``: JSON data on which the result depends. None: the settings'
    `keyed()`. If it changes while the stage runs (an input file was written), the stage fails."""
    complete: Callable[[Recipe, Registry | None], Recipe] | None = None
    """Fills in what a recipe leaves to an input that it names; see `bc2.pipeline.completion`."""
    implied: bool = False
    """Whether a recipe that makes an input of this stage also makes this stage without having
    its section, which then has its defaults."""

    def __post_init__(self) -> None:
        if (self.make is None) == (self.run is None):
            raise ValueError(f"the stage of {self.kind} needs one of make and run")

    def made_by(self, recipe: Recipe, stage_of: Callable[[Kind, Recipe], Stage[Any]]) -> bool:
        """Whether `recipe` itself says how to make this stage's artifact."""
        if self.section is not None and recipe.has(self.section):
            return True
        upstream = (stage_of(needed.kind, recipe) for needed in self.inputs)
        return self.implied and any(stage.made_by(recipe, stage_of) for stage in upstream)

    @property
    def sections(self) -> frozenset[str]:
        """The names of the tables that it reads."""
        own = () if self.section is None else (self.section,)
        return frozenset(section.section for section in (*own, *self.also))

    def read(self, recipe: Recipe) -> S:
        """What `recipe` says of this stage, on any machine.

        Raises:
            RecipeError: the section is missing or wrong.
        """
        if self.resolve is not None:
            return self.resolve(recipe)
        assert self.section is not None, f"the stage of {self.kind} has no section"
        if self.implied and not recipe.has(self.section):
            return self.section()  # type: ignore[return-value]
        return recipe.get(self.section)  # type: ignore[return-value]

    def settings_of(self, recipe: Recipe) -> S:
        """What `recipe` says of this stage, which this process can do.

        Raises:
            RecipeError: the section is missing or wrong, or does not fit the ranks.
        """
        settings = self.read(recipe)
        if self.fit is not None:
            self.fit(settings)
        return settings

    def identity_of(self, settings: S, home: Path) -> Mapping[str, Any]:
        """JSON data that, with the inputs, decides the result."""
        if self.identity is not None:
            return self.identity(settings, home)
        assert isinstance(settings, Settings), f"the stage of {self.kind} needs an identity"
        return settings.keyed()
