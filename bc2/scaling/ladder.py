"""The members of a ladder: runs of one recipe at several sizes, as its [ladder] says.

A member is what ``bc2 pretrain RECIPE --set ...`` trains, and has the key of that run. What
changes with its size N (parameters without embedding and head) follows a stated rule: learning
rate and batch are those of the recipe times a power of N / reference_params. Imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bc2 import recipe as recipes
from bc2.errors import RecipeError, UsageError, nearest
from bc2.model.model_config import ModelConfig
from bc2.override import spelled_place
from bc2.pipeline.reach import check_overrides
from bc2.recipe import Recipe
from bc2.scaling.ladder_config import LadderConfig, MemberConfig, ShapeConfig
from bc2.toml_file import dotted
from bc2.train.duration import Duration
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.training_settings import TrainingSettings

#: What the ladder sets for each member, so that --set cannot.
_SET_BY_MEMBER = ("pretrain.length", "pretrain.schedule.warmup")


@dataclass(frozen=True)
class LadderMember:
    """One run of a ladder."""

    label: str
    """Its name without the ladder's: ``11m``."""
    settings: TrainingSettings
    overrides: tuple[str, ...]
    """What ``bc2 pretrain RECIPE`` is given as ``--set`` to train it."""
    extrapolation: bool = False
    """Whether it tests the law, and is not fitted."""

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def params(self) -> int:
        """N: parameters without embedding and head."""
        return self.settings.model.num_params_non_embedding()

    @property
    def params_total(self) -> int:
        return self.settings.model.num_params()

    @property
    def batch_tokens(self) -> int:
        return self.settings.training.step_tokens

    @property
    def learning_rate(self) -> float:
        return self.settings.training.optimizer.learning_rate

    @property
    def seed(self) -> int:
        return self.settings.training.seed

    @cached_property
    def steps(self) -> int:
        """Optimizer steps."""
        length = Duration.parse(self.settings.training.length)
        return length.steps(batch_tokens=self.batch_tokens, epoch_tokens=0)

    @property
    def tokens(self) -> int:
        """D: tokens that it reads, a whole number of steps."""
        return self.steps * self.batch_tokens

    @property
    def flops(self) -> int:
        """Of the training, counted with head and attention: see `ModelConfig.flops_per_token`."""
        length = self.settings.training.sequence_length
        return self.settings.model.flops_per_token(length) * self.tokens

    @property
    def flops_6nd(self) -> int:
        """6 N D."""
        return 6 * self.params * self.tokens

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.params


@dataclass(frozen=True)
class Ladder:
    """The runs of a recipe's [ladder]."""

    recipe: Recipe
    members: tuple[LadderMember, ...]
    """In the order of their compute, repeats after what they repeat."""
    extrapolation: LadderMember | None

    @property
    def name(self) -> str:
        return self.recipe.name

    def tag(self, member: LadderMember) -> str:
        """The tag of a finished member in the registry."""
        return f"{self.name}-extrapolation" if member.extrapolation else self.name

    def chosen(self, only: Sequence[str] = (), *, extrapolate: bool = False) -> list[LadderMember]:
        """The members to train, the extrapolation last.

        Args:
            only: their names, with or without the ladder's; all if empty.
            extrapolate: whether the extrapolation is among them.

        Raises:
            UsageError: a name is no member's, or there is no extrapolation.
        """
        last = self.extrapolation
        if extrapolate and last is None:
            raise UsageError(
                f"the ladder {self.name} has no [ladder.extrapolation]",
                where=str(self.recipe.path),
                todo="leave out --extrapolate, or add a member that is larger than the others",
            )
        known = [*self.members, *([last] if last is not None and extrapolate else [])]
        names = {one.name: one for one in known} | {one.label: one for one in known}
        for name in only:
            if name not in names:
                raise self._unknown(name, names)
        wanted = {names[name].name for name in only}
        return [one for one in known if not only or one.name in wanted]

    def _unknown(self, name: str, names: Iterable[str]) -> UsageError:
        last = self.extrapolation
        if last is not None and name in (last.name, last.label):
            todo = "add --extrapolate"
            return UsageError(f"{name} is the extrapolation of the ladder", todo=todo)
        guess = nearest(name, names)
        labels = ", ".join(one.label for one in self.members)
        return UsageError(
            f"the ladder {self.name} has no member {name!r}",
            todo=f"did you mean {guess!r}?" if guess else f"there are {labels}",
        )


def read_ladder(source: str, overrides: Sequence[str] = (), *, seeds: int = 1) -> Ladder:
    """The ladder of a recipe.

    Args:
        source: a path, or a shipped name.
        overrides: ``section.key=value`` strings, as of ``--set``.
        seeds: how often the member of the least compute is trained, each with a seed of its own.

    Raises:
        RecipeError: there is no [ladder], it is wrong, or two members are the same run.
    """
    base = recipes.load(source, overrides)
    config = base.get(LadderConfig)
    check_overrides(base, "checkpoint", also=(LadderConfig.section,))
    for path, spelled in base.overrides.items():
        key = ".".join(map(str, path))
        if key in _SET_BY_MEMBER:
            raise RecipeError(
                f"{key} is each member's own",
                where=spelled_place(spelled),
                todo="set ladder.members.0.length and so on, or ladder.warmup_share",
            )
    _check_shapes_left(base, config)
    if base.get(PretrainConfig).init is not None:
        raise RecipeError(
            "the members of a ladder begin with weights that the seed draws: with those of "
            "another run a loss is not that of a member's own tokens",
            where=base.where(("pretrain", "init")),
            todo="leave out pretrain.init",
        )
    made = [_Member(source, overrides, base, config, one, at) for one, at in _listed(config)]
    labels = _labels(made)
    found = [one.build(label) for one, label in zip(made, labels, strict=True)]
    _check_different(base, made, found)
    members = sorted((one for one in found if not one.extrapolation), key=lambda one: one.flops)
    again = [_with_seed(source, members[0], number) for number in range(1, seeds)]
    last = next((one for one in found if one.extrapolation), None)
    return Ladder(base, (members[0], *again, *members[1:]), last)


def _check_shapes_left(base: Recipe, config: LadderConfig) -> None:
    """Check that no override is of a part of [model] that every member replaces."""
    members = [one for one, _ in _listed(config)]
    for path, spelled in base.overrides.items():
        if path[0] != "model" or len(path) < 2:
            continue
        if all(one.recipe or path[1] in ShapeConfig.model_fields for one in members):
            raise RecipeError(
                f"{dotted(path)} reaches nothing: each member has its own",
                where=spelled_place(spelled),
                todo="set ladder.members.0.model.KEY and so on, or name other recipes there",
            )


Place = tuple[str | int, ...]


def _listed(config: LadderConfig) -> Iterator[tuple[MemberConfig, Place]]:
    """Every member with its place in the recipe, the extrapolation last."""
    for number, member in enumerate(config.members):
        yield member, ("ladder", "members", number)
    if config.extrapolation is not None:
        yield config.extrapolation, ("ladder", "extrapolation")


class _Member:
    """A member on the way from its table to a run."""

    def __init__(
        self, source: str, overrides: Sequence[str], base: Recipe, config: LadderConfig,
        member: MemberConfig, place: Place,
    ):  # fmt: skip
        self.source, self.overrides, self.base = source, overrides, base
        self.config, self.member, self.place = config, member, place
        self.other = _other(base, member.recipe) if member.recipe else None
        shaped = recipes.load(source, [*overrides, *self._shape()])
        self.params = shaped.get(ModelConfig).num_params_non_embedding()

    @property
    def length(self) -> str:
        """As the member has it, else as its recipe."""
        if self.member.length is not None:
            return self.member.length
        assert self.other is not None
        length = self.other.get(PretrainConfig).length
        if Duration.parse(length).unit == "epochs":
            raise RecipeError(
                f"the length of {self.member.recipe} is in epochs: it is not known beforehand",
                where=self.base.where(self.place),
                todo='give the member a length, such as "2M tokens"',
            )
        return length

    def label(self) -> str:
        """Its size in words, or the last part of its recipe's name."""
        if self.member.recipe is not None:
            return self.member.recipe.rpartition("/")[2].removesuffix(".toml")
        return size_label(self.params)

    def build(self, label: str) -> LadderMember:
        """The run. Raises: RecipeError."""
        batch, micro = self._batch()
        steps = Duration.parse(self.length).steps(batch_tokens=batch, epoch_tokens=0)
        warmup = max(1, round(self.config.warmup_share * steps))
        own = [
            f"name={self.base.name}-{label}",
            *self._shape(),
            f"pretrain.length={self.length}",
            f"pretrain.batch_tokens={batch}",
            *([] if micro == self._training.micro_batch else [f"pretrain.micro_batch={micro}"]),
            f"pretrain.optimizer.learning_rate={self._learning_rate()!r}",
            f"pretrain.schedule.warmup={warmup} steps",
        ]
        last = self.place[1] == "extrapolation"
        return _member(self.source, label, [*self.overrides, *own], extrapolation=last)

    @property
    def _training(self) -> PretrainConfig:
        return self.base.get(PretrainConfig)

    def _shape(self) -> list[str]:
        """What replaces the recipe's [model]."""
        if self.member.model is not None:
            shape = self.member.model.model_dump()
        else:
            assert self.other is not None
            own = self.base.get(ModelConfig).model_dump()
            theirs = self.other.get(ModelConfig).model_dump()
            shape = {name: value for name, value in theirs.items() if value != own[name]}
            self._check_replaces(shape)
        return [f"model.{name}={_toml(value)}" for name, value in shape.items()]

    def _check_replaces(self, shape: Mapping[str, Any]) -> None:
        """Check that what another recipe's [model] differs by can be said as overrides."""
        for name, value in shape.items():
            if value is None or isinstance(value, dict):
                raise RecipeError(
                    f"{self.member.recipe} has another model.{name}, which no member can replace",
                    where=self.base.where(self.place),
                    todo=f"give both recipes the same model.{name}, or the member a shape",
                )

    def _scaled(self, value: float, exponent: float) -> float:
        return float(value * (self.params / self.config.reference_params) ** exponent)

    def _learning_rate(self) -> float:
        """By the rule to three digits, unless the member has its own."""
        if self.member.learning_rate is not None:
            return self.member.learning_rate
        rate = self._training.optimizer.learning_rate
        return float(f"{self._scaled(rate, self.config.learning_rate_exponent):.3g}")

    def _batch(self) -> tuple[int, int | str]:
        """Tokens of a step, and sequences of a micro-batch, which divides it.

        By the rule: the nearest number of whole micro-batches; below one, of whole sequences,
        all at once.
        """
        length, micro = self._training.sequence_length, self._training.micro_batch
        if self.member.batch_tokens is not None:
            sequences = self._own_sequences(self.member.batch_tokens, length)
        else:
            wanted = self._scaled(self._training.batch_tokens, self.config.batch_exponent) / length
            unit = micro if isinstance(micro, int) and wanted >= micro else 1
            sequences = max(1, round(wanted / unit)) * unit
        if isinstance(micro, int):
            micro = next(n for n in range(min(micro, sequences), 0, -1) if sequences % n == 0)
        return sequences * length, micro

    def _own_sequences(self, batch: int, length: int) -> int:
        if batch % length:
            below = batch // length * length
            offers = " or ".join(str(n) for n in (below, below + length) if n)
            raise RecipeError(
                f"batch_tokens = {batch} is no multiple of sequence_length = {length}",
                where=self.base.where((*self.place, "batch_tokens")),
                todo=f"{offers} would be",
            )
        return batch // length


def _other(base: Recipe, name: str) -> Recipe:
    """The recipe that a member names: beside the ladder's, or shipped."""
    beside = base.folder / name
    return recipes.load(beside if beside.is_file() else name)


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _member(
    source: str, label: str, overrides: Sequence[str], *, extrapolation: bool = False
) -> LadderMember:
    settings = TrainingSettings.of(recipes.load(source, overrides))
    return LadderMember(label, settings, tuple(overrides), extrapolation)


def _with_seed(source: str, member: LadderMember, number: int) -> LadderMember:
    """A repeat of a member that differs in its seed alone."""
    label = f"{member.label}-seed{number}"
    name = f"name={member.name}-seed{number}"
    seed = f"pretrain.seed={member.seed + number}"
    return _member(source, label, [*member.overrides, name, seed])


def size_label(params: int) -> str:
    """107 thousand parameters as ``107k``, 3.41 million as ``3.41m``."""
    for unit, letter in ((10**9, "b"), (10**6, "m"), (10**3, "k")):
        if params >= unit:
            return f"{params / unit:.3g}{letter}"
    return str(params)


def _labels(made: Sequence[_Member]) -> list[str]:
    """A label a member: its size, with its tokens where two share one, then a number."""
    labels = [one.label() for one in made]
    twice = {label for label, count in Counter(labels).items() if count > 1}
    labels = [
        f"{label}-{one.length.replace(' ', '')}" if label in twice else label
        for one, label in zip(made, labels, strict=True)
    ]
    seen: Counter[str] = Counter()
    found = []
    for label in labels:
        seen[label] += 1
        found.append(label if seen[label] == 1 else f"{label}-{seen[label]}")
    return found


def _check_different(base: Recipe, made: Sequence[_Member], found: Sequence[LadderMember]) -> None:
    seen: list[tuple[Any, _Member]] = []
    for one, member in zip(made, found, strict=True):
        run = (member.settings.model.keyed(), member.settings.training.keyed())
        for earlier, first in seen:
            if run == earlier:
                raise RecipeError(
                    f"two members of the ladder are the same run: {_spelled(first.place)} and "
                    f"{_spelled(one.place)}",
                    where=base.where(one.place),
                    todo="give one another size or length; --seeds repeats the smallest",
                )
        seen.append((run, one))


def _spelled(place: Place) -> str:
    return ".".join(map(str, place))
