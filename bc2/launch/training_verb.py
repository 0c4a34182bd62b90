"""The options of every training verb, and what each such verb does with them.

Both the command that a rank is started with and the one that resumes a run are built from
`TrainingRequest`, so that an option is added in one place.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from bc2.console import Output
from bc2.errors import RecipeError
from bc2.lasting_recipe import lasting_source
from bc2.launch.hub_inputs import HubInputs, hub_names, pinned_overrides
from bc2.launch.rank_options import Ranks
from bc2.options import (
    Fresh,
    Json,
    MaxRestarts,
    NNodes,
    NodeRank,
    NProc,
    Quiet,
    RecipeArg,
    Rendezvous,
    RendezvousTimeout,
    Set,
    verb,
)
from bc2.pipeline.completion import completed
from bc2.pipeline.reach import check_overrides
from bc2.pipeline.table import algorithm_named, check_sections, recipe_of_verb, training_section
from bc2.process.launcher_variables import rendezvous_address, take_part
from bc2.ranks import RENDEZVOUS_TIMEOUT_S, first, launched_with, restarted, world_size
from bc2.recipe import Recipe, load
from bc2.registry import Artifact, Registry

if TYPE_CHECKING:
    from bc2.pipeline.session import Session
    from bc2.train.training_settings import TrainingSettings

Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Only kernels that give the same bits each time.")
]


@dataclass(frozen=True)
class TrainingRequest:
    """What a person asked a training verb for."""

    verb: str
    """As it is typed: ``pretrain``."""
    recipe: str
    """A path, or a shipped name."""
    overrides: tuple[str, ...] = ()
    """The values of ``--set``."""
    fresh: bool = False
    deterministic: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    json: bool = False
    quiet: bool = False
    instead: tuple[str, ...] = ()
    """What a person types to go on, where another verb trains this run."""
    debug: bool = False
    """Whether tracebacks are shown: ``bc2 --debug``."""

    @property
    def output(self) -> Output:
        return Output.of(json=self.json, quiet=self.quiet)

    def load(self) -> Recipe:
        """The recipe with every override, as it is written. Raises: RecipeError."""
        also = [f"{self.verb}.deterministic=true"] if self.deterministic else []
        return recipe_of_verb(load(self.recipe, [*self.overrides, *also]), self.verb)

    @property
    def world(self) -> int:
        """Ranks of the run, over all machines."""
        wanted = self.ranks.wanted
        return self.ranks.nproc * self.ranks.machines[0] if wanted else world_size()

    @property
    def _words(self) -> list[str]:
        """The verb with what decides its result."""
        # A file whose name begins with a dash is no option.
        recipe = f"./{self.recipe}" if self.recipe.startswith("-") else self.recipe
        words = [self.verb, recipe]
        for override in self.overrides:
            words += ["--set", override]
        return [*words, "--deterministic"] if self.deterministic else words

    @property
    def resume_command(self) -> list[str]:
        """What a person types to go on with the run."""
        if self.instead:
            return list(self.instead)
        return ["bc2", *self._words, *self.ranks.options, *launched_with()]

    @property
    def rank_arguments(self) -> list[str]:
        """What each rank is started with, after ``bc2``."""
        flags = {"--fresh": self.fresh, "--json": self.json, "--quiet": self.quiet}
        words = [*self._words, *(flag for flag, given in flags.items() if given)]
        return ["--debug", *words] if self.debug else words


def training_options(
    verb: str,
) -> Callable[[Callable[[TrainingRequest], None]], Callable[..., None]]:
    """Give a command, a function of one `TrainingRequest`, the options of a training verb."""

    def decorate(command: Callable[[TrainingRequest], None]) -> Callable[..., None]:
        def with_options(
            context: typer.Context,
            recipe: RecipeArg,
            set_: Set = None,
            fresh: Fresh = False,
            deterministic: Deterministic = False,
            nproc: NProc = 1,
            nnodes: NNodes = "1",
            node_rank: NodeRank = None,
            rendezvous: Rendezvous = None,
            max_restarts: MaxRestarts = 0,
            rendezvous_timeout: RendezvousTimeout = RENDEZVOUS_TIMEOUT_S,
            json: Json = False,
            quiet: Quiet = False,
        ) -> None:
            take_part()
            command(
                TrainingRequest(
                    verb,
                    recipe,
                    tuple(set_ or ()),
                    fresh,
                    deterministic,
                    Ranks(nproc, nnodes, node_rank, rendezvous, max_restarts, rendezvous_timeout),
                    json,
                    quiet,
                    debug=context.find_root().params.get("debug", False),
                )
            )

        with_options.__name__ = command.__name__
        with_options.__doc__ = inspect.getdoc(command)
        return with_options

    return decorate


def algorithm_app(section: str) -> typer.Typer:
    """The verb of an algorithm that another package brings: its section, with its docstring."""
    app = verb()

    def train(request: TrainingRequest) -> None:
        run_training(request)

    train.__name__ = section
    train.__doc__ = inspect.getdoc(algorithm_named(section))
    app.command()(training_options(section)(train))
    return app


def run_training(request: TrainingRequest) -> None:
    """Find or train what the request asks for; print it.

    With ``--nproc`` and its like this process makes what all ranks need and starts them.

    Raises:
        RecipeError: the recipe is wrong, does not fit the ranks, or the ranks differ.
        UsageError: the device or a tracker is not there.
        ResourceError: the model cannot fit in this machine's memory. It is said before anything
            is made.
    """
    training = _Training.of(request)
    if request.ranks.wanted:
        training.start_ranks()
        return
    model, made = training.train()
    # Imported now: what draws is not needed before the first line of a run.
    from bc2.report.artifact_view import show_artifact

    show_artifact(model, request.output, made=made)


def train_quietly(request: TrainingRequest) -> tuple[Artifact, bool]:
    """Find or train what the request asks for, for a verb that prints its own result.

    Returns:
        The finished checkpoint, and whether it was made now.

    Raises:
        Bc2Error: as `run_training`.
    """
    training = _Training.of(request)
    if not request.ranks.wanted:
        return training.train()
    known = training.finished()
    if known is not None:
        return known, False
    training.start_ranks(silent=True)
    made = training.finished()
    assert made is not None, "the ranks ended well"
    return made, True


@dataclass(frozen=True)
class _Training:
    """A request with its recipe read and checked."""

    request: TrainingRequest
    recipe: Recipe
    settings: TrainingSettings
    session: Session
    hub: HubInputs

    @classmethod
    def of(cls, request: TrainingRequest) -> _Training:
        """Raises: RecipeError; UsageError, also where the environment names no rendezvous.

        What the recipe names on a hub is imported, when all is checked that is known before.
        """
        from bc2.pipeline.session import Session

        if world_size() > 1:
            rendezvous_address(os.environ)  # refused before anything is read
            # torch, not imported yet, would log each attempt to reach a rank with its C++ stack.
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        written, registry = request.load(), Registry.open()
        hub = HubInputs.of(registry)
        if hub_names(written):
            _check_before_import(request, registry, written)
        recipe = completed(written, registry, before=hub.pinned)
        settings, world = _checked(request, recipe), request.world
        source = lasting_source(recipe, request.recipe, registry.work / "recipes")
        overrides = pinned_overrides(request.overrides, written, recipe)
        request = replace(request, recipe=source, overrides=overrides)
        check = partial(check_resources, registry, [settings], world, request.ranks.starts)
        # A rank that is started again goes on.
        fresh = request.fresh and not restarted()
        return cls(request, recipe, settings, Session(registry, fresh, check), hub)

    def start_ranks(self, *, silent: bool = False) -> None:
        """Make once what every rank needs, and run the ranks to their end."""
        from bc2.launch.elastic import launch

        base = self.session.untrained(self.recipe, self.settings)
        if base is not None:
            # This process would train it alone, whatever ranks it needs.
            raise RecipeError(
                f"the model of {base.name!r}, which this run begins with, is not trained yet",
                where=self.recipe.where((self.request.verb, "init")),
                todo=f"train it first: bc2 {training_section(base)} {base.path} --nproc ...",
            )
        self.session.obtain_inputs("checkpoint", self.recipe, settings=self.settings)
        self.session.registry.check_writable()
        self.hub.export()
        work = self.session.registry.work
        launch(self.request.ranks, self.request.rank_arguments, work, silent=silent)

    def finished(self) -> Artifact | None:
        """The run's finished checkpoint, if there is one; its inputs are made if there are none."""
        from bc2.train.run import Run

        registry = self.session.registry
        inputs = self.session.obtain_inputs("checkpoint", self.recipe, settings=self.settings)
        run = Run.of_inputs(self.settings, inputs, registry, self.recipe.resolved())
        return run.finished(registry)

    def train(self) -> tuple[Artifact, bool]:
        """Find or train it in this process, which may be one of several ranks."""
        registry, settings = self.session.registry, self.settings
        if world_size() > 1:
            from bc2.train.rendezvous import check_ranks_agree

            wait_s = self.request.ranks.rendezvous_timeout
            check_ranks_agree(settings, registry.work, wait_s=wait_s)
        command = self.request.resume_command
        model = self.session.obtain("checkpoint", self.recipe, settings=settings, command=command)
        from bc2.report.curves import draw_run, redraw
        from bc2.train.logs.runs import RunFolder

        made = model in self.session.built
        if first():
            folder = RunFolder.of(registry, self.recipe.name, model.key)
            draw_run(folder) if made else redraw(folder)
        return model, made


def _checked(request: TrainingRequest, recipe: Recipe) -> TrainingSettings:
    """The settings of a complete recipe, which fit each other, the ranks and the devices.

    Raises:
        RecipeError: they do not; or an override reaches nothing.
        UsageError: the device is not there.
    """
    from bc2.train.device import check_gpus_for
    from bc2.train.training_settings import TrainingSettings

    # Another verb has checked what its overrides reach: each member of a ladder has its own.
    if not request.instead:
        check_overrides(recipe, "checkpoint")
    settings = TrainingSettings.of(recipe, algorithm=algorithm_named(request.verb))
    settings.check_ranks(request.world)
    check_gpus_for(settings.training.device, request.ranks.nproc)
    return settings


def _check_before_import(request: TrainingRequest, registry: Registry, recipe: Recipe) -> None:
    """Find what is wrong with a recipe before a model is fetched for it, which may take hours.

    Raises:
        Bc2Error: as `_checked` and `check_resources`, of what is known without that model.
    """
    from bc2.model.model_config import ModelConfig

    if recipe.writes(ModelConfig):
        settings = _checked(request, recipe)
        check_resources(registry, [settings], request.world, request.ranks.starts)
        return
    others = {name: table for name, table in recipe.data.items() if name != ModelConfig.section}
    check_sections(replace(recipe, data=others))
    registry.check_writable()


def check_resources(
    registry: Registry, runs: Sequence[TrainingSettings], world: int, nproc: int | None
) -> None:
    """Refuse what cannot be trained here, before anything is made.

    Args:
        registry: where the checkpoints are to go.
        world: ranks of each run.
        nproc: ranks that this process is going to start here; None: it trains itself.

    Raises:
        ResourceError: a model cannot fit in memory.
        UsageError: a tracker is not installed.
        RunFailed: no checkpoint could be published.
    """
    from bc2.plan.check import check_memory_fits
    from bc2.train.logs.trackers import check_trackers

    for settings in runs:
        check_trackers(settings.training.track)
        check_memory_fits(settings, world, nproc)
    for name in sorted({settings.name for settings in runs}):
        registry.check_publishing("checkpoint", name)
