"""The [pretrain] section: how long, how fast, and what to do when it goes wrong."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig, divisors, offer
from bc2.recipe import FP32_LARGEST, UNKEYED, Recipe, Section, Settings
from bc2.train.duration import MOST, Duration
from bc2.train.optimizer_config import AdamWConfig, OptimizerConfig

#: A device, as torch spells it.
DEVICE = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"


class ScheduleConfig(Settings):
    """Linear warm-up, then a cosine to a minimum (§2.5)."""

    warmup: str = "2000 steps"
    """Length of the linear warm-up, as "N steps" or "N tokens"."""
    min_ratio: float = Field(0.1, ge=0, le=1)
    """The last learning rate over the highest (the paper does not state it)."""

    @field_validator("warmup")
    @classmethod
    def _length(cls, text: str) -> str:
        Duration.parse(text)
        return text


class GuardConfig(Settings):
    """What counts as a bad step, and what happens to it. Nothing passes silently."""

    max_rise: float = Field(2.0, gt=0)
    """A spike: the loss exceeds the median of the window by more than this, in nats a token."""
    window: int = Field(64, ge=4)
    """Number of accepted losses that the median is taken over; no spike before it is full."""
    action: Literal["skip", "rollback", "stop"] = "skip"
    """skip the step and its data; roll back to the last checkpoint and skip the data; or stop."""
    max_bad: int = Field(10, ge=1, json_schema_extra=UNKEYED)
    """Stop when this many steps were bad since the last good one, or rolled back in a row."""


class PretrainConfig(Section):
    """Settings of `bc2 pretrain`."""

    section: ClassVar[str] = "pretrain"

    tokens: str | None = Field(None, json_schema_extra=UNKEYED)
    """Token shards: a ref, or a recipe that makes them. None: this recipe's own [tokens].
    Keyed by their digest."""
    length: str
    """How long to train: "350 steps", "2.6T tokens" or "2 epochs"."""
    batch_tokens: int = Field(gt=0, le=2**40)
    """Tokens that one optimizer step sees, over all ranks."""
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
    seed: int = Field(0, ge=0, lt=2**64)
    """Seeds the weights and the order of samples."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of samples of each source, up to a common factor. Where the corpus has strata, a
    source's name stands for the sum of its own, which keep their proportion. Empty: as the
    corpus has it, and if it has no weights, in proportion to tokens."""
    max_epochs: float | None = Field(None, gt=0, json_schema_extra=UNKEYED)
    """A run that would read some text more often than this does not start."""
    z_loss: float = Field(2e-4, ge=0, le=FP32_LARGEST)
    """Weight of the squared largest logit (Baichuan 2, equation 1)."""
    optimizer: OptimizerConfig = AdamWConfig()
    """[pretrain.optimizer]"""
    schedule: ScheduleConfig = ScheduleConfig()
    """[pretrain.schedule]"""
    guard: GuardConfig = GuardConfig()
    """[pretrain.guard]"""
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
    """How often the held-out loss is measured; it is always measured at the end."""
    eval_tokens: int = Field(1_000_000, ge=0, json_schema_extra=UNKEYED)
    """At most this many held-out tokens are read for it; 0: never measure."""
    sample_prompts: int = Field(3, ge=0, le=10_000, json_schema_extra=UNKEYED)
    """Held-out documents whose beginnings are continued after each evaluation; 0: none."""
    sample_tokens: int = Field(48, ge=1, le=65_536, json_schema_extra=UNKEYED)
    """At most this many tokens are added to each of them."""
    log_every: int = Field(1, ge=1, json_schema_extra=UNKEYED)
    """Steps between rows of metrics.jsonl."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = Field((), json_schema_extra=UNKEYED)
    """Trackers that also get the metrics (the `track` extra)."""

    @field_validator("length", "checkpoint_every", "eval_every")
    @classmethod
    def _durations(cls, text: str) -> str:
        Duration.parse(text)
        return text

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        if any(weight < 0 for weight in weights.values()):
            raise ValueError("a mixture weight cannot be negative")
        if weights and not any(weights.values()):
            raise ValueError("every source has weight 0; give one a weight above 0")
        return weights

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
    def _whole_batches(self) -> PretrainConfig:
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
        return self

    @model_validator(mode="after")
    def _countable(self) -> PretrainConfig:
        """Positions in the data are numbers of 64 bits; epochs are known with the data only."""
        length = Duration.parse(self.length)
        if length.unit == "epochs":
            return self
        steps = length.steps(batch_tokens=self.batch_tokens, epoch_tokens=0)
        if steps * self.batch_tokens > MOST:
            raise ValueError(
                f"length = {self.length!r} is {steps:,} steps of batch_tokens = "
                f"{self.batch_tokens:,}: more tokens than can be counted ({MOST:,})"
            )
        return self

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
    def batch_sequences(self) -> int:
        """Sequences of one optimizer step."""
        return self.batch_tokens // self.sequence_length

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


def check_batches(config: PretrainConfig, parallel: ParallelConfig, world: int) -> None:
    """Check that the ranks share a step evenly: it has the same samples whatever their number.

    Raises:
        RecipeError: they do not; it names the numbers that would.
    """
    data = max(1, world // parallel.ranks_of_a_replica)
    if config.sequence_length % parallel.sequence:
        raise RecipeError(
            f"parallel.sequence = {parallel.sequence} does not divide "
            f"pretrain.sequence_length = {config.sequence_length}",
            where="[parallel]",
            todo=offer("parallel.sequence", config.sequence_length),
        )
    if world == 1:
        return
    if config.micro_batch == "auto":
        raise RecipeError(
            'micro_batch = "auto" is tried on one rank alone',
            where="pretrain.micro_batch",
            todo="set a number of sequences",
        )
    if config.batch_sequences % (config.micro_sequences * data):
        fit = [] if config.batch_sequences % data else divisors(config.batch_sequences // data)
        offered = f"pretrain.micro_batch may be {', '.join(map(str, fit[:8]))}"
        raise RecipeError(
            f"a step of {config.batch_sequences} sequences is no whole number of micro-batches of "
            f"{config.micro_sequences} on {data} data-parallel ranks",
            where="pretrain.batch_tokens",
            todo=offered if fit else offer("the data-parallel ranks", config.batch_sequences),
        )


def check_context(recipe: Recipe) -> None:
    """Check that sequences are no longer than the model's context.

    Raises:
        RecipeError: they are.
    """
    model, training = recipe.get(ModelConfig), recipe.get(PretrainConfig)
    if training.sequence_length > model.context_length:
        raise RecipeError(
            f"pretrain.sequence_length = {training.sequence_length} is longer than "
            f"model.context_length = {model.context_length}",
            where=recipe.where(("pretrain", "sequence_length")),
            todo="lower the one or raise the other",
        )
