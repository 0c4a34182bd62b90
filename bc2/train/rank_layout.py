"""A number of ranks and the layout of a recipe over them, as ``--layout`` says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bc2.errors import UsageError
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.run_config import check_batches
from bc2.train.training_settings import TrainingSettings, check_models

#: The settings that ``--layout`` takes beside the number of ranks.
_NUMBERS = ("tensor", "sequence", "zero", "zero_group")
_SWITCHES = ("offload_optimizer", "overlap")


@dataclass(frozen=True)
class RankLayout:
    """A number of ranks, their layout and their micro-batch."""

    ranks: int
    parallel: ParallelConfig
    micro_batch: int | None
    """Sequences a rank sees at once; None: what the recipe's "auto" comes to."""

    def __str__(self) -> str:
        settings = [
            f"{key} {'x'.join(v) if key == 'order' else v}" for key, v in self._own().items()
        ]
        return ", ".join([f"{self.ranks} rank{'s' if self.ranks > 1 else ''}", *settings])

    @property
    def typed(self) -> str:
        """As `parse_layout` reads it: ``2:zero=1``, or ``2``."""
        own = {key: v for key, v in self._own().items() if key != "order"}
        settings = ",".join(f"{key}={v}".lower() for key, v in own.items())
        return f"{self.ranks}:{settings}" if settings else str(self.ranks)

    def _own(self) -> dict[str, Any]:
        plain = ParallelConfig().model_dump()
        return {key: v for key, v in self.parallel.model_dump().items() if v != plain[key]}

    def as_json(self) -> dict[str, Any]:
        parallel = self.parallel.model_dump(mode="json")
        return {"ranks": self.ranks, "micro_batch": self.micro_batch, "parallel": parallel}


def recipe_layout(settings: TrainingSettings, ranks: int) -> RankLayout:
    """The recipe's own layout on so many ranks."""
    micro = settings.training.micro_batch
    return RankLayout(ranks, settings.parallel, None if micro == "auto" else micro)


def parse_layout(settings: TrainingSettings, base: RankLayout, text: str) -> RankLayout:
    """Read ``RANKS:key=value,key=value``; settings that are left out are those of `base`.

    Raises:
        UsageError: the text cannot be read, or contradicts itself.
    """
    number, _, rest = text.partition(":")
    values = dict(_setting(text, part) for part in rest.split(",") if part.strip())
    try:
        parallel = ParallelConfig(**{**base.parallel.model_dump(), **values})
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"{place}: " for place in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--layout {text!r}: {key}{what}") from None
    return fill_micro_batch(
        settings, RankLayout(read_ranks(number, "--layout"), parallel, base.micro_batch)
    )


def _setting(text: str, part: str) -> tuple[str, int | bool]:
    key, _, value = (word.strip() for word in part.partition("="))
    if key in _NUMBERS and value.isdecimal():
        return key, int(value)
    if key in _SWITCHES and value in ("true", "false"):
        return key, value == "true"
    raise UsageError(
        f"--layout {text!r}: cannot read {part!r}",
        todo=f"e.g. 4:zero=2,tensor=2; numbers: {', '.join(_NUMBERS)}; true or false: "
        f"{', '.join(_SWITCHES)}",
    )


def read_ranks(text: str, option: str) -> int:
    """A number of ranks as it is typed."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"{option} {text!r} is no number of ranks", todo=f"e.g. {option} 2")
    return int(text)


def fill_micro_batch(settings: TrainingSettings, layout: RankLayout) -> RankLayout:
    """The layout with the largest micro-batch, up to its own, that divides a step evenly."""
    training = settings.training
    share = training.batch_sequences // max(1, layout.ranks // layout.parallel.ranks_of_a_replica)
    most = layout.micro_batch or (1 if layout.ranks > 1 else 0)
    fit = [n for n in range(1, most + 1) if share % n == 0]
    return RankLayout(layout.ranks, layout.parallel, fit[-1] if fit else layout.micro_batch)


def check_divides(settings: TrainingSettings, layout: RankLayout) -> None:
    """Check that the models and the batch divide evenly among the ranks.

    Raises:
        RecipeError: they do not; it names what would.
    """
    check_models(settings.models, layout.parallel, layout.ranks, str(layout))
    training = settings.training
    if layout.micro_batch is not None:
        training = training.model_copy(update={"micro_batch": layout.micro_batch})
    check_batches(training, layout.parallel, layout.ranks)
