"""Recipes: TOML files of typed sections, and errors that name file, line and key.

A section's class lives beside what it builds and derives from `Section`; the
table `SECTIONS` says where, and a class is imported only when a recipe has that
section. This module knows TOML, inheritance (``base``), overrides (``--set``)
and where each key was written; it knows nothing of models or data.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from bc2.errors import RecipeError, nearest
from bc2.override import assign, parse_override, spelled_place
from bc2.plugins import foreign_algorithm, foreign_algorithms
from bc2.toml_file import KeyPath, TomlFile, check_values, dotted, read_toml
from bc2.user_paths import expand_if_known

#: Section name -> "module:class". The one place a new section is announced.
SECTIONS: dict[str, str] = {
    "corpus": "bc2.data.corpus_config:CorpusConfig",
    "tokenizer": "bc2.tokenizer.tokenizer_config:TokenizerConfig",
    "tokens": "bc2.data.corpus_config:TokensConfig",
    "chats": "bc2.data.chats.chats_config:ChatsConfig",
    "pairs": "bc2.data.pairs.pairs_config:PairsConfig",
    "model": "bc2.model.model_config:ModelConfig",
    "parallel": "bc2.parallel.parallel_config:ParallelConfig",
    "pretrain": "bc2.train.pretrain.pretrain_config:PretrainConfig",
    "sft": "bc2.align.sft.sft_config:SftConfig",
    "reward": "bc2.align.reward.reward_config:RewardConfig",
    "dpo": "bc2.align.dpo.dpo_config:DpoConfig",
    "ladder": "bc2.scaling.ladder_config:LadderConfig",
    "merge": "bc2.convert.merging.merge_config:MergeConfig",
}

#: Keys at the top of a recipe, outside every section.
TOP_KEYS = ("name", "description", "base")


class Settings(BaseModel):
    """Settings inside a section: frozen, unknown keys forbidden, numbers finite."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        # Only the sections of the recipe that is read are ever built.
        defer_build=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    field_order: ClassVar[tuple[str, ...]] = ()
    """Fields that people see first, in this order; inheritance alone puts a base's before them."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, info in cls.model_fields.items():
            if keying(info) == "unless default" and info.is_required():
                raise TypeError(f"{cls.__name__}.{name} is KEYED_UNLESS_DEFAULT without a default")
        if cls.field_order:
            fields = cls.__pydantic_fields__
            first = {name: fields[name] for name in cls.field_order}
            cls.__pydantic_fields__ = first | fields

    def keyed(self) -> dict[str, Any]:
        """The settings that affect results, as JSON data: what a stage's key is made of.

        Fields declared UNKEYED are left out, and so are those declared KEYED_UNLESS_DEFAULT
        that have their default.
        """
        kept = {}
        for name, info in type(self).model_fields.items():
            how = keying(info)
            value = to_keyed(getattr(self, name))
            if how == "always" or (how == "unless default" and not _is_default(value, info)):
                kept[name] = value
        return kept


#: ``Field(json_schema_extra=UNKEYED)``: recorded, but does not change results (logging, paths,
#: intervals).
UNKEYED: dict[str, Any] = {"keyed": "never"}

#: ``Field(json_schema_extra=KEYED_UNLESS_DEFAULT)``: for each setting that is added to a section
#: or table after its first release. Keys of before are those of its default, which must do what
#: was done before there was the setting, and never change.
KEYED_UNLESS_DEFAULT: dict[str, Any] = {"keyed": "unless default"}


#: Of what is computed with in fp32: the smallest normal number and the largest.
FP32_SMALLEST, FP32_LARGEST = 1.2e-38, 3.4e38


def keying(info: FieldInfo) -> str:
    """When a field of `Settings` enters a stage's key: always, unless default, or never."""
    extra = info.json_schema_extra
    return str(extra.get("keyed", "always")) if isinstance(extra, dict) else "always"


def to_keyed(value: Any) -> Any:
    """A setting's value as it enters a key: JSON data."""
    if isinstance(value, Settings):
        return value.keyed()
    if isinstance(value, list | tuple):
        return [to_keyed(item) for item in value]
    if isinstance(value, dict):
        return {key: to_keyed(item) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, Path) else value


def _is_default(keyed: Any, info: FieldInfo) -> bool:
    return _same(keyed, to_keyed(info.get_default(call_default_factory=True)))


def _same(one: Any, other: Any) -> bool:
    """Whether JSON data is equal: 1 is 1.0, as in Python, and 1 is not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


class Section(Settings):
    """A top-level table of a recipe."""

    section: ClassVar[str]


S = TypeVar("S", bound=Section)

#: Of a number that arrays and files hold, without its sign.
_SIGNED_BITS = 63

#: Which of several problems of a section is said first.
_RANK = {"extra_forbidden": 0, "missing": 2}


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: merged tables, and typed sections on demand."""

    name: str
    description: str
    data: Mapping[str, Any]
    layers: tuple[TomlFile, ...] = field(repr=False)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict, repr=False)
    named_by: tuple[Path, ...] = field(default=(), repr=False, compare=False)
    """Of one that others name as an input's: the files on the way to it, its own the last."""
    borrowed: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Sections that it takes from what it names, and where they are written."""
    complete: Callable[[Recipe], Recipe] | None = field(default=None, repr=False, compare=False)
    """Fills in what a recipe leaves to what it names, see `bc2.pipeline.completion`; also for
    the recipes that this one names."""

    @property
    def path(self) -> Path:
        return self.layers[0].path

    @property
    def folder(self) -> Path:
        """Where the recipes that it names are looked for first."""
        return self.layers[0].folder

    @property
    def section_names(self) -> tuple[str, ...]:
        own = tuple(name for name in SECTIONS if name in self.data)
        return (*own, *(name for name in self.data if name not in SECTIONS and is_section(name)))

    @cached_property
    def _built(self) -> dict[str, Section]:
        return {}

    def has(self, cls: type[Section]) -> bool:
        return cls.section in self.data

    def get(self, cls: type[S]) -> S:
        """The section `cls`, validated.

        Raises:
            RecipeError: the section is missing or broken, with file, line and key.
        """
        if cls.section not in self.data:
            raise RecipeError(
                f"recipe {self.name!r} has no [{cls.section}] section",
                where=str(self.path),
                todo=f"add [{cls.section}], or take one from another recipe with base = ...",
            )
        if cls.section not in self._built:
            self._built[cls.section] = self._validate(cls)
        built = self._built[cls.section]
        assert isinstance(built, cls)
        return built

    def sections(self) -> Iterator[Section]:
        """Every section, validated, in the order of `SECTIONS`."""
        for name in self.section_names:
            yield self.get(section_class(name))

    def writes(self, cls: type[Section]) -> bool:
        """Whether a file has the section, and not overrides alone."""
        return any(cls.section in layer.data for layer in self.layers)

    def borrowing(self, cls: type[Section], table: Mapping[str, Any], where: str) -> Recipe:
        """The recipe with a section of something else below its own overrides of it.

        Args:
            where: where the table is written, for errors.
        """
        merged = _merge(table, self.data.get(cls.section, {}))
        return replace(
            self,
            data={**self.data, cls.section: merged},
            borrowed={**self.borrowed, cls.section: where},
        )

    def resolved(self, only: Collection[str] | None = None) -> dict[str, Any]:
        """The whole recipe with every default filled in, as JSON data.

        Args:
            only: the sections to take; None: all.
        """
        sections = {
            section.section: section.model_dump(mode="json")
            for section in self.sections()
            if only is None or section.section in only
        }
        return {"name": self.name, "description": self.description, **sections}

    def _validate(self, cls: type[S]) -> S:
        try:
            built = cls.model_validate_json(_as_json(self.data[cls.section]), strict=True)
        except ValidationError as error:
            raise self._explain(cls, error) from None
        self._check_integers(built, (cls.section,))
        return built

    def _check_integers(self, built: BaseModel, key: KeyPath) -> None:
        """Check that integers fit into 64 bits with their sign, unless a field has another bound.

        Raises:
            RecipeError: one does not.
        """
        for name, info in type(built).model_fields.items():
            bounded = any(hasattr(bound, "lt") or hasattr(bound, "le") for bound in info.metadata)
            for place, value in _leaves(getattr(built, name), (*key, name)):
                if isinstance(value, BaseModel):
                    self._check_integers(value, place)
                elif isinstance(value, int) and value.bit_length() > _SIGNED_BITS and not bounded:
                    what = f"{dotted(place)}: {value} is more than a number of 64 bits can be"
                    raise RecipeError(what, where=self.where(place))

    def _explain(self, cls: type[Section], error: ValidationError) -> RecipeError:
        # A misspelt key first: what it misses is then explained.
        entries = sorted(_own(error.errors()), key=lambda entry: _RANK.get(entry["type"], 1))
        problems = [self._problem(cls, dict(entry)) for entry in entries]
        first, where, todo = problems[0]
        more = [f"{place}: {what}" for what, place, _ in problems[1:4]]
        what = "\n".join([first, *(f"also {line}" for line in more)])
        return RecipeError(what, where=where, todo=todo)

    def _problem(self, cls: type[Section], entry: dict[str, Any]) -> tuple[str, str, str | None]:
        location = tuple(entry["loc"])
        key: KeyPath = (cls.section, *location)
        name = dotted(key)
        if entry["type"] == "extra_forbidden":
            known = list(_fields_at(cls, location[:-1]))
            guess = nearest(str(location[-1]), known)
            todo = f"did you mean {guess!r}?" if guess else f"known keys: {', '.join(known)}"
            return f"unknown key {name}", self.where(key), todo
        if entry["type"] == "missing":
            todo = f"add {location[-1]} = ..."
            return f"missing key {name}", self.where(key[:-1]), todo
        message = entry["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        shown = repr(entry["input"])
        got = f", not {shown}" if location and len(shown) < 80 else ""
        return f"{name}: {message}{got}", self.where(key), None

    def where(self, key: KeyPath) -> str:
        """Where `key` was set: ``--set``, or ``file:line`` in the layer that wins."""
        for path, spelled in self.overrides.items():
            # an item's number is a string on the command line
            if tuple(map(str, key[: len(path)])) == path:
                return spelled_place(spelled)
        if key and key[0] in self.borrowed:
            return self.borrowed[str(key[0])]
        for length in range(len(key), 0, -1):
            for layer in self.layers:
                line = layer.line_of(key[:length])
                if line is not None:
                    return f"{layer.path}:{line}"
            for path, spelled in self.overrides.items():
                if path[:length] == tuple(map(str, key[:length])):
                    return spelled_place(spelled)
        return str(self.path)


def is_section(name: str) -> bool:
    """Whether it is a section of bc2's own, or of an algorithm that another package brings."""
    return name in SECTIONS or (name not in TOP_KEYS and name in foreign_algorithms())


def section_class(name: str) -> type[Section]:
    """Import the class behind a section's name."""
    if name in SECTIONS:
        module, _, attribute = SECTIONS[name].partition(":")
        loaded = getattr(importlib.import_module(module), attribute)
    else:
        loaded = foreign_algorithm(name).section
    assert issubclass(loaded, Section)
    return loaded  # type: ignore[no-any-return]


def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path, or by the name of one that bc2 ships.

    Args:
        source: a path, which may be of a pipe; ``-`` for stdin; or a shipped name such as
            ``tiny``, ``ladder/11m`` or ``recipes/tiny.toml``.
        overrides: ``section.key=value`` strings; a value is TOML, or else a plain string.

    Raises:
        RecipeError: no such recipe, broken TOML, unknown section, circular base,
            or an override that names nothing.
    """
    layers = tuple(_layers(_find(source)))
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _merge(merged, layer.data)
    spelled: dict[KeyPath, str] = {}
    for override in overrides:
        path, value = parse_override(override)
        if path[0] == "base":
            raise _late_base(override)
        for part in (*path, value):
            check_values(part, path, lambda _: spelled_place(override))  # noqa: B023
        assign(merged, path, value, override)
        spelled[path] = override
    # A base lends its sections, not its name: two runs are not one artifact's versions.
    own = layers[0].data.get("name", layers[0].stem)
    name = merged["name"] if ("name",) in spelled else own
    recipe = Recipe(str(name), str(merged.get("description", "")), merged, layers, spelled)
    _check_top(recipe)
    return recipe


def _late_base(override: str) -> RecipeError:
    return RecipeError(
        "base cannot be set here: overrides come after the recipe's base is read",
        where=spelled_place(override),
        todo="choose another recipe, or write one of its own with base = ...",
    )


def shipped() -> list[str]:
    """The names of the recipes that bc2 ships, sorted: ``7b``, ``ladder/11m``, ..."""
    root = _shipped_root()
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.toml"))


def _shipped_root() -> Path:
    return Path(str(files("bc2.recipes")))


def _find(source: str | Path) -> Path:
    path = expand_if_known("/dev/stdin" if source == "-" else source)
    if exists(path) and not isdir(path):  # they never raise
        return path
    inside = str(source).removeprefix("recipes/").removesuffix(".toml")
    if inside in shipped():
        return _shipped_root() / f"{inside}.toml"
    if isdir(path):
        raise RecipeError(f"{path} is a directory, not a recipe", todo="name a .toml file")
    guess = nearest(inside, shipped())
    raise RecipeError(
        f"no such recipe: {source}",
        todo=f"did you mean {guess!r}?" if guess else "see `bc2 recipe list`",
    )


def _layers(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[TomlFile]:
    if path.resolve() in seen:
        chain = " -> ".join(str(p) for p in (*seen, path.resolve()))
        raise RecipeError("recipes are each other's base", where=chain, todo="break the circle")
    layer = read_toml(path)
    yield layer
    base = layer.data.get("base")
    if base is None:
        return
    if not isinstance(base, str):
        raise RecipeError(
            'base must be a path such as "tiny.toml"', where=f"{path}:{layer.line_of(('base',))}"
        )
    beside = layer.folder / base
    yield from _layers(beside if isfile(beside) else _find(base), (*seen, path.resolve()))


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`: tables merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _check_top(recipe: Recipe) -> None:
    known = [*TOP_KEYS, *SECTIONS]
    for key, value in recipe.data.items():
        if key not in known and not is_section(key):
            known.extend(sorted({*foreign_algorithms()} - {*known}))
            guess = nearest(key, known)
            raise RecipeError(
                f"unknown section [{key}]" if isinstance(value, Mapping) else f"unknown key {key}",
                where=recipe.where((key,)),
                todo=f"did you mean {guess!r}?" if guess else f"known: {', '.join(known)}",
            )
        if key not in TOP_KEYS and not isinstance(value, Mapping):
            raise RecipeError(f"[{key}] must be a table", where=recipe.where((key,)))
        if key in TOP_KEYS and not isinstance(value, str):
            raise RecipeError(f"{key} must be a string", where=recipe.where((key,)))


def _leaves(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """What stands in a field, and in the lists and tables of it; other settings as they are."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _leaves(below, (*key, name))
    elif isinstance(value, list | tuple):
        for number, below in enumerate(value):
            yield from _leaves(below, (*key, number))
    else:
        yield key, value


def _fields_at(cls: type[BaseModel], location: Iterable[str | int]) -> Iterator[str]:
    """The names of the fields that may stand at `location` inside `cls`."""
    current: type[BaseModel] = cls
    for part in location:
        if isinstance(part, int):
            continue
        info = current.model_fields.get(part)
        if info is not None:
            current = next(_models_in(info.annotation), current)
    yield from current.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _as_json(value: Any) -> str:
    import json

    return json.dumps(value, default=str)


def _own(entries: Sequence[Any]) -> list[Any]:
    """Without those of a list that is "too short" only because its items are wrong."""
    return [
        entry
        for entry in entries
        if entry["type"] != "too_short"
        or not any(
            len(other["loc"]) > len(entry["loc"])
            and other["loc"][: len(entry["loc"])] == entry["loc"]
            for other in entries
        )
    ]
