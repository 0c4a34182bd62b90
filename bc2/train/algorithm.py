"""What an algorithm brings to a run: everything that `bc2.train` does not know by itself.

An algorithm is declared once, as an instance of `Algorithm`, and announced by its section in
`bc2.pipeline.table.ALGORITHMS`. The run makes its models, its loop makes, judges, logs, saves and
resumes its steps, and plan, bench, watch, report and verify read what it declares. Importing it
needs no torch: what computes is imported when a run begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from bc2.model.model_config import ModelConfig
from bc2.pipeline.stage import Input, Inputs, Stage
from bc2.recipe import Recipe
from bc2.registry import Artifact, Registry, Role
from bc2.train.metric import Metrics
from bc2.train.optimizer_config import OptimizerConfig
from bc2.train.run_config import RunConfig

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from bc2.data.loader import Batch
    from bc2.model.adapters import AddAdapters
    from bc2.parallel.mesh import Mesh
    from bc2.train.guard import Guard
    from bc2.train.measured import Measured
    from bc2.train.models import Models
    from bc2.train.objective import Objective
    from bc2.train.run import Run
    from bc2.train.schedule import Schedule
    from bc2.train.stream import BatchStream
    from bc2.train.training_settings import TrainingSettings

#: The input that the weights of every algorithm's product may start from: ``init`` of its section.
INIT: Input[TrainingSettings] = Input(
    "checkpoint", lambda settings: settings.training.init, name="init", optional=True
)


@dataclass(frozen=True)
class ModelRole:
    """A model of a run, and what it does there."""

    name: str
    """policy, reference, critic ...; the first that is trained is what the run makes."""
    model: ModelConfig
    trained: bool = True
    """False: it is run and never changed, without an optimizer."""
    optimizer: OptimizerConfig | None = None
    """Of a trained one; None: as the section says."""
    trainable: Callable[[str], bool] | None = None
    """Says of a parameter's name whether it is trained; None: all are."""
    adapters: AddAdapters | None = None
    """Puts adapters beside its layers."""
    alone: bool = False
    """Whether only what is trained is saved, as adapters are: the rest is where it starts from."""
    init: str | None = INIT.name
    """The input whose weights it starts from; None, or where nothing is named: the seed's."""
    in_steps: bool = True
    """Whether every step passes through it, as FLOPs and MFU count. False: only the stream or the
    evaluation runs it; what the stream computes it says itself, `StepData.further_flops`."""

    def __post_init__(self) -> None:
        """Raises: ValueError if files and columns of metrics cannot have its name."""
        if not self.name.isidentifier() or self.name == "optimizer":
            raise ValueError(
                f"a model's name has letters, digits and underscores, and is not optimizer: "
                f"{self.name!r}"
            )


class Algorithm(ABC):
    """The declaration of an algorithm; see `Training` for what it does in a run."""

    section: ClassVar[type[RunConfig]]
    """Its table in a recipe, whose name is its verb too."""
    version: ClassVar[int]
    """Raised when the same settings and inputs would train another model."""
    role: ClassVar[Role]
    """Of its checkpoints, unless `checkpoint_role` says another one."""
    metrics: ClassVar[Metrics]
    """What its steps and evaluations measure."""
    divisor: ClassVar[str] = "tokens"
    """The weight that losses are divided by, summed over all ranks (`Batch.weights`): "tokens"
    (supervised ones), "samples", or one of its own, such as "pairs"."""
    inputs: ClassVar[tuple[Input[TrainingSettings], ...]] = ()
    """What it is trained on, beside `INIT`."""

    def __init__(self) -> None:
        """Raises: TypeError or ValueError if the declaration is not whole."""
        for name in ("section", "version", "role", "metrics"):
            if not hasattr(self, name):
                raise TypeError(f"{type(self).__name__} does not say its {name}")
        if self.role not in get_args(Role):
            known = ", ".join(get_args(Role))
            raise ValueError(f"checkpoints have no role {self.role!r}; there are {known}")

    @property
    def name(self) -> str:
        """Its section and verb."""
        return self.section.section

    @property
    def all_inputs(self) -> tuple[Input[TrainingSettings], ...]:
        return (*self.inputs, INIT)

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        """The models of a run, in the order in which every rank makes them."""
        return (ModelRole("model", settings.model),)

    def trained_shape(self, written: ModelConfig) -> ModelConfig:
        """The model that a recipe's [model], or that of its `init`, becomes in this algorithm."""
        return written

    def check(self, recipe: Recipe) -> None:  # noqa: B027 most need none
        """Find what is wrong with a recipe on any machine, beyond what all training checks.

        Raises:
            RecipeError: sections contradict each other.
        """

    def check_inputs(self, recipe: Recipe) -> None:  # noqa: B027 most need none
        """Hold a recipe against those that make its inputs, as far as they are known.

        Raises:
            RecipeError: they do not fit each other.
        """

    def parents(self, inputs: Inputs, registry: Registry) -> tuple[Artifact, ...]:
        """What its checkpoints descend from: the inputs, and what belongs to them."""
        return inputs.all()

    def checkpoint_role(self, config: RunConfig) -> Role:
        """The role of the checkpoints of a run with these settings of its section."""
        return self.role

    def write_beside(self, run: Run, folder: Path) -> None:  # noqa: B027 most need none
        """Write further files into a checkpoint, when all others are in its folder.

        The first rank calls it, on a thread of its own. The same run writes the same bytes.
        """

    def shortened(self, config: RunConfig, steps: int) -> dict[str, Any]:
        """Settings that make evaluations of a run of few steps small, for `bc2 verify`."""
        return {}

    @abstractmethod
    def objective(self, role: str, config: RunConfig, models: Models) -> Objective:
        """What a trained model minimises; it may run the other `models` without gradients."""

    @abstractmethod
    def example(
        self, settings: TrainingSettings, sequences: int, rng: np.random.Generator
    ) -> Batch:
        """A micro-batch of made data, of the kind that takes the most memory: every sequence full.

        ``micro_batch = "auto"`` and `bc2 bench` make steps of it.
        """

    @abstractmethod
    def open(self, run: Run) -> Training:
        """Open a run's data and check it against the settings, before anything is written.

        Raises:
            RecipeError: settings that do not fit the data.
            IntegrityError: a file is not what was published.
        """

    @cached_property
    def stage(self) -> Stage[TrainingSettings]:
        """Its stage in the pipeline."""
        from bc2.train.training_stage import training_stage

        return training_stage(self)


class Training(ABC):
    """An algorithm in one run, on this rank: its data is open."""

    schedule: Schedule
    """When the run evaluates, saves and ends."""
    tokenizer: Path
    """The tokenizer's file (`bc2.tokenizer.tokenizer_files.tokenizer_path`), which goes into every
    checkpoint under its own name, with the chat layout beside it if there is one."""

    @abstractmethod
    def stream(self, config: RunConfig, models: Models, check: Callable[[], None]) -> BatchStream:
        """The steps' data, which may be drawn from the models.

        Args:
            config: with ``micro_batch = "auto"`` resolved, as it was not yet when this was opened.
            check: called in long waits; if it raises, the wait ends.
        """

    def check_registered(self, run: Run, registry: Registry) -> None:  # noqa: B027 most need none
        """Check what the registry has for the run, before anything of an earlier one is removed.

        The first rank calls it, of a run that is not finished.

        Raises:
            Bc2Error: what is there does not fit the run.
        """

    def prepare(self, run: Run, registry: Registry, mesh: Mesh) -> None:  # noqa: B027 most need none
        """Make what the run needs and other runs may share, before its models are made.

        All ranks call it, also when the run goes on from a checkpoint.

        Raises:
            RecipeError, DataError: what is there does not fit the run.
        """

    def check_begin(  # noqa: B027 most need none
        self, config: RunConfig, models: Models, check: Callable[[], None]
    ) -> None:
        """Called before the first step of a run that does not go on from a checkpoint.

        Raises:
            RunFailed: the models are not what training must begin with.
        """

    @abstractmethod
    def guard(self) -> Guard[Any]:
        """What judges steps."""

    def evaluator(
        self, config: RunConfig, models: Models, check: Callable[[], None]
    ) -> Callable[[], Measured] | None:
        """What measures the models beside training; None: nothing does. See `stream`."""
        return None

    def alike(self) -> Mapping[str, Any]:
        """What every rank must have read alike, by a name for errors, beside the run's length.

        For what is not checked by an artifact's digest, such as what each machine made itself.
        """
        return {}

    @abstractmethod
    def extent(self) -> str:
        """What a step reads, and how much that is in the whole run, for a person."""

    def announcements(self) -> Sequence[str]:
        """Lines for a person about the data, before the first step."""
        return ()
