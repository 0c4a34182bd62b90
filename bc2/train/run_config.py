"""What all training shares: the settings of a run, whatever algorithm trains in it.

The section of an algorithm, such as [pretrain], derives from `RunConfig`. What works for every
run reads that class alone; a section keeps what is its own algorithm's. Imports no torch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig, divisors, offer
from bc2.recipe import KEYED_UNLESS_DEFAULT, UNKEYED, Recipe, Section, Settings
from bc2.train.duration import MOST, Duration
from bc2.train.optimizer_config import AdamWConfig, OptimizerConfig

#: A device, as torch spells it.
DEVICE = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"

#: What the learning rate does after the warm-up.
ScheduleShape = Literal["cosine", "linear", "constant"]


class ScheduleConfig(Settings):
    """The learning rate: a linear warm-up to the highest, and what follows it (§2.5)."""

    shape: ScheduleShape = Field("cosine", json_schema_extra=KEYED_UNLESS_DEFAULT)
    """After the warm-up: down to the minimum at the last step, along half a cosine or a line; or
    constant, at the highest to the end."""
    warmup: str = "2000 steps"
    """Length of the linear warm-up, as "N steps" or "N tokens"; "0 steps": none."""
    min_ratio: float = Field(0.1, ge=0, le=1)
    """The last learning rate over the highest, of a cosine (the paper does not state it) or a
    line; a constant one has no minimum, and takes no other value than the default."""

    @field_validator("warmup")
    @classmethod
    def _length(cls, text: str) -> str:
        Duration.parse(text, may_be_zero=True)
        return text

    @model_validator(mode="after")
    def _with_effect(self) -> Self:
        default = type(self).model_fields["min_ratio"].default
        if self.shape == "constant" and self.min_ratio != default:
            raise ValueError(
                f"min_ratio = {self.min_ratio:g} has no effect on a constant learning rate; leave "
                f'it at its default, {default:g}, or set shape = "linear" or "cosine"'
            )
        return self

    @property
    def warmup_length(self) -> Duration:
        """`warmup`, read."""
        return Duration.parse(self.warmup, may_be_zero=True)


class GuardConfig(Settings):
    """What happens to a bad step. Nothing passes silently."""

    action: Literal["skip", "rollback", "stop"] = "skip"
    """skip the step and its data; roll back to the last checkpoint and skip the data; or stop."""
    max_bad: int = Field(10, ge=1, json_schema_extra=UNKEYED)
    """Stop when this many steps were bad since the last good one, or rolled back in a row."""


class LossGuardConfig(GuardConfig):
    """What counts as a bad step beside NaN and Inf, and what happens to it."""

    field_order = ("max_rise", "window")

    max_rise: float = Field(2.0, gt=0)
    """A spike: the loss exceeds the median of the window by more than this, in nats a token."""
    window: int = Field(64, ge=4)
    """Number of accepted losses that the median is taken over; no spike before it is full."""


class RunConfig(Section):
    """Settings of a training run that are the same for every algorithm.

    A section that derives from it has a field of its own for its batch, in what its algorithm
    counts (tokens, pairs, prompts), and says how many sequences that is.
    """

    batch_key: ClassVar[str]
    """The section's field for its batch, such as batch_tokens."""

    length: str
    """How long to train: "350 steps", "2.6T tokens" or "2 epochs"."""
    micro_batch: int | Literal["auto"] = Field(json_schema_extra=UNKEYED)
    """Sequences that a device sees at once; gradient accumulation follows. "auto": the largest
    divisor of the batch that fits in the device's memory."""
    sequence_length: int = Field(4096, ge=2, lt=2**31)
    """Tokens of one sequence."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: bf16 forward and backward over fp32 master weights. auto: bf16 where the device
    has instructions for it, else fp32."""
    device: str = Field("auto", pattern=DEVICE, json_schema_extra=UNKEYED)
    """auto, cpu, cuda or cuda:N."""
    init: str | None = Field(None, json_schema_extra=UNKEYED)
    """Weights to start from: a checkpoint by its ref, a recipe that makes it, or a model of the
    hub (hf://OWNER/NAME@REVISION). None: the seed's. Keyed by its digest."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Seeds the weights and the order of samples."""
    optimizer: OptimizerConfig = AdamWConfig()
    """The update rule."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate."""
    guard: GuardConfig = GuardConfig()
    """What is done about bad steps."""
    compile: bool | Literal["auto"] = "auto"
    """Run the model through torch.compile. auto: on a GPU, where its compiler is installed."""
    activation_checkpointing: int | Literal["auto"] = Field(0, json_schema_extra=UNKEYED)
    """Recompute activations by segments of this many layers: 0 keeps all, 1 every layer,
    k segments of k layers. "auto": as many as have the fewest activations in memory at once."""
    deterministic: bool = Field(False, json_schema_extra=UNKEYED)
    """Only kernels that give the same bits each time (see docs/training.md); on a GPU slower."""
    data_timeout_s: float = Field(300.0, gt=0, le=1e9, json_schema_extra=UNKEYED)
    """A run that waited this many seconds for a batch saves its state and fails."""
    checkpoint_every: str = Field("1000 steps", json_schema_extra=UNKEYED)
    """How often a resumable checkpoint is published."""
    keep_checkpoints: int = Field(2, ge=0, json_schema_extra=UNKEYED)
    """How many of a run's checkpoints stay registered; 0: all.
    Tagged ones always stay, and after a save off schedule the last one on schedule, until
    the next: a run whose loss explodes goes back to that one."""
    eval_every: str = Field("500 steps", json_schema_extra=UNKEYED)
    """How often the model is evaluated on what is held out; it always is at the end."""
    log_every: int = Field(1, ge=1, json_schema_extra=UNKEYED)
    """Steps between rows of metrics.jsonl."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = Field((), json_schema_extra=UNKEYED)
    """Trackers that also get the metrics (the `track` extra)."""

    @field_validator("length", "checkpoint_every", "eval_every")
    @classmethod
    def _durations(cls, text: str) -> str:
        Duration.parse(text)
        return text

    @field_validator("compile", mode="plain")
    @classmethod
    def _bool_or_auto(cls, value: Any) -> Any:
        if value == "auto" or type(value) is bool:
            return value
        raise ValueError('must be true, false or "auto"')

    @field_validator("micro_batch", mode="plain")
    @classmethod
    def _sequences_or_auto(cls, value: Any) -> Any:
        # By hand: of a union pydantic says what each of its types would have wanted.
        if value == "auto" or (type(value) is int and value > 0):
            return value
        raise ValueError('must be a number of sequences above 0, or "auto"')

    @field_validator("activation_checkpointing", mode="plain")
    @classmethod
    def _layers_or_auto(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and value >= 0):
            return value
        raise ValueError('must be a number of layers, 0 for none, or "auto"')

    @model_validator(mode="after")
    def _countable_batches(self) -> Self:
        self._check_batch()
        self._check_length()
        return self

    def _check_batch(self) -> None:
        """A batch is a whole number of micro-batches. Raises: ValueError."""
        micro = 1 if self.micro_batch == "auto" else self.micro_sequences
        if self.batch_sequences % micro:
            raise ValueError(
                f"{self.batch_text} are {self.batch_sequences} sequences, not a multiple of "
                f"micro_batch = {micro}"
            )

    def _check_length(self) -> None:
        """Positions in the data are numbers of 64 bits; epochs are known with the data only.

        Raises: ValueError.
        """
        length = Duration.parse(self.length)
        if length.unit == "epochs":
            return
        steps = length.steps(batch_tokens=self.step_tokens, epoch_tokens=0)
        if steps * self.step_tokens > MOST:
            raise ValueError(
                f"length = {self.length!r} is {steps:,} steps of {self.batch_text}: more tokens "
                f"than can be counted ({MOST:,})"
            )

    def keyed(self) -> dict[str, Any]:
        """See `Settings.keyed`.

        A rollback goes to the last scheduled checkpoint, so there the schedule matters. A run
        has no "auto" for compile; a recipe that has it has the key of false, the default before.
        """
        keyed = {**super().keyed(), "compile": self.compile is True}
        if self.guard.action == "rollback":
            keyed["checkpoint_every"] = self.checkpoint_every
        return keyed

    @property
    @abstractmethod
    def batch_sequences(self) -> int:
        """Sequences of one optimizer step, over all ranks."""

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, over all ranks, where every sequence is full."""
        return self.batch_sequences * self.sequence_length

    @property
    def batch_text(self) -> str:
        """The batch as the recipe has it, for errors."""
        return f"{self.batch_key} = {getattr(self, self.batch_key):,}"

    @property
    def micro_sequences(self) -> int:
        """`micro_batch` as a number, where "auto" is resolved."""
        assert self.micro_batch != "auto", "resolved by bc2.train.micro_batch before it is used"
        return self.micro_batch

    @property
    def segment_layers(self) -> int:
        """`activation_checkpointing` as a number, where "auto" is resolved."""
        assert self.activation_checkpointing != "auto", "settle_checkpointing comes before"
        return self.activation_checkpointing


class TokenBatchConfig(RunConfig):
    """Settings of a run whose batch is counted in tokens."""

    batch_key: ClassVar[str] = "batch_tokens"

    batch_tokens: int = Field(gt=0, le=2**40)
    """Tokens that one optimizer step sees, over all ranks."""

    def _check_batch(self) -> None:
        """A batch is a whole number of micro-batches; the error offers the nearest ones."""
        sequences = 1 if self.micro_batch == "auto" else self.micro_sequences
        unit = sequences * self.sequence_length
        if self.batch_tokens % unit:
            below = self.batch_tokens // unit * unit
            offers = [str(n) for n in (below, below + unit) if n]
            raise ValueError(
                f"batch_tokens = {self.batch_tokens} is not a multiple of micro_batch x "
                f"sequence_length = {sequences} x {self.sequence_length} = {unit}; "
                f"{' or '.join(offers)} would be"
            )

    @property
    def batch_sequences(self) -> int:
        """Sequences of one optimizer step."""
        return self.batch_tokens // self.sequence_length


def check_batches(config: RunConfig, parallel: ParallelConfig, world: int) -> None:
    """Check that the ranks share a step evenly: it has the same samples whatever their number.

    Raises:
        RecipeError: they do not; it names the numbers that would.
    """
    data = max(1, world // parallel.ranks_of_a_replica)
    if config.sequence_length % parallel.sequence:
        raise RecipeError(
            f"parallel.sequence = {parallel.sequence} does not divide "
            f"{config.section}.sequence_length = {config.sequence_length}",
            where="[parallel]",
            todo=offer("parallel.sequence", config.sequence_length),
        )
    if world == 1:
        return
    if config.micro_batch == "auto":
        raise RecipeError(
            'micro_batch = "auto" is tried on one rank alone',
            where=f"{config.section}.micro_batch",
            todo="set a number of sequences",
        )
    if config.batch_sequences % (config.micro_sequences * data):
        fit = [] if config.batch_sequences % data else divisors(config.batch_sequences // data)
        offered = f"{config.section}.micro_batch may be {', '.join(map(str, fit[:8]))}"
        raise RecipeError(
            f"a step of {config.batch_sequences} sequences is no whole number of micro-batches of "
            f"{config.micro_sequences} on {data} data-parallel ranks",
            where=f"{config.section}.{config.batch_key}",
            todo=offered if fit else offer("the data-parallel ranks", config.batch_sequences),
        )


def check_context(recipe: Recipe, section: type[RunConfig]) -> None:
    """Check that sequences are no longer than the model's context.

    Raises:
        RecipeError: they are.
    """
    model, training = recipe.get(ModelConfig), recipe.get(section)
    if training.sequence_length > model.context_length:
        raise RecipeError(
            f"{training.section}.sequence_length = {training.sequence_length} is longer than "
            f"model.context_length = {model.context_length}",
            where=recipe.where((training.section, "sequence_length")),
            todo="lower the one or raise the other",
        )
