"""Refs: how a person names an artifact.

A path to one; else ``KIND/NAME`` or ``NAME``, alone (the newest) or with ``@1000``
(step), ``@220B`` (tokens; K, M, B, T) or ``:TAG``; else 8 or more digits of its
digest. The first of these that means anything wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from bc2.errors import RefError, nearest
from bc2.registry.artifact import KINDS, NAME, Artifact, Kind

if TYPE_CHECKING:
    from bc2.registry.store import Registry

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

_REF = re.compile(
    rf"(?:(?P<kind>{'|'.join(KINDS)})/)?(?P<name>{NAME.pattern})"
    rf"(?:@(?P<step>[0-9]+)|@(?P<count>[0-9]+(?:\.[0-9]+)?)(?P<unit>[KMBT])"
    rf"|:(?P<tag>{NAME.pattern}))?"
)
_DIGEST = re.compile(r"[0-9a-fA-F]{8,64}")


@dataclass(frozen=True)
class Ref:
    """A parsed ref that is not a path; at most one of `step`, `count` and `tag` is given."""

    name: str
    kind: Kind | None = None
    step: int | None = None
    count: Decimal | None = None
    """Tokens in units of `unit`, with the digits that were written."""
    unit: int = 1
    tag: str | None = None

    @property
    def bare(self) -> bool:
        """A name alone, which may also be the beginning of a digest."""
        return self.kind is None and self.step is None and self.count is None and self.tag is None


def parse(text: str) -> Ref | None:
    """Read a ref by its form alone; None if it has no form that a ref has."""
    match = _REF.fullmatch(text)
    if match is None:
        return None
    kind = next((known for known in KINDS if known == match["kind"]), None)
    return Ref(
        name=match["name"],
        kind=kind,
        step=int(match["step"]) if match["step"] else None,
        count=Decimal(match["count"]) if match["count"] else None,
        unit=UNITS[match["unit"]] if match["unit"] else 1,
        tag=match["tag"],
    )


def resolve(registry: Registry, text: str, kind: Kind | None = None) -> Artifact:
    """The one artifact that `text` names.

    Args:
        registry: where to look.
        text: a ref, or the path of an artifact's directory.
        kind: the kind that is needed, which also settles a name that several kinds have.

    Raises:
        RefError: nothing answers to it, several do, or it is of another kind.
    """
    if (Path(text).expanduser() / "manifest.json").is_file():
        return _of_kind(at_path(registry, Path(text).expanduser()), text, kind)
    ref = parse(text)
    if ref is None:
        raise RefError(
            f"no artifact at {text!r}, and it is not a ref",
            todo="write NAME, KIND/NAME, NAME@STEP, NAME@220B, NAME:TAG, or 8 digits of a digest",
        )
    named = [found for found in registry.list(name=ref.name) if ref.kind in (None, found.kind)]
    wanted = [found for found in named if kind in (None, found.kind)]
    if wanted:
        return _pick(ref, text, wanted)
    if ref.bare and _DIGEST.fullmatch(text) and (found := registry.with_prefix(text.lower())):
        return _of_kind(_only(found, text), text, kind)
    if named:
        return _of_kind(named[0], text, kind)
    raise _unknown(registry, ref, text, kind)


def at_path(registry: Registry, folder: Path) -> Artifact:
    """The artifact in a directory: a registered one, or one from outside the registry.

    Raises:
        RefError: it lies in the registry's home without being registered.
        IntegrityError: its manifest is broken.
    """
    from bc2.registry.manifest import read

    folder = folder.absolute()
    artifact = read(folder).artifact(folder)
    if not folder.resolve().is_relative_to(registry.home.resolve()):
        return artifact
    for known in registry.with_prefix(artifact.digest):
        if known.path.resolve() == folder.resolve():
            return known
    raise RefError(
        "this directory is not a published artifact",
        where=str(folder),
        todo="run its stage again; `bc2 registry rebuild` adopts complete ones",
    )


def _of_kind(artifact: Artifact, text: str, kind: Kind | None) -> Artifact:
    if kind is not None and artifact.kind != kind:
        raise RefError(f"{text!r} is a {artifact.kind}, and a {kind} is needed")
    return artifact


def _pick(ref: Ref, text: str, named: Sequence[Artifact]) -> Artifact:
    """The artifact among those of one name (newest first) that the ref means."""
    if len({found.kind for found in named}) > 1:
        spelled = text.removeprefix(f"{ref.kind}/")
        raise _ambiguous(text, (f"{found.kind}/{spelled}" for found in named))
    if ref.tag is not None:
        tagged = [found for found in named if ref.tag in found.tags]
        if not tagged:
            raise _no_tag(ref, text, named)
        return tagged[0]
    if ref.step is None and ref.count is None:
        return named[0]
    placed = [found for found in named if found.position]
    matches = _at_step(ref, placed) if ref.step is not None else _at_tokens(ref, placed)
    if not matches:
        raise _none_at(ref, text, placed)
    if len({found.key for found in matches}) > 1:
        raise _ambiguous(text, (found.ref for found in matches))
    return matches[0]


def _at_step(ref: Ref, placed: Iterable[Artifact]) -> list[Artifact]:
    return [found for found in placed if found.position and found.position.step == ref.step]


def _at_tokens(ref: Ref, placed: Iterable[Artifact]) -> list[Artifact]:
    """Those at exactly so many tokens; else those that round to it, the nearest first."""
    assert ref.count is not None
    wanted = ref.count * ref.unit
    digit = Decimal(1).scaleb(int(ref.count.as_tuple().exponent))

    def tokens(found: Artifact) -> Decimal:
        return Decimal(found.position.tokens if found.position else 0)

    placed = list(placed)
    exact = [found for found in placed if tokens(found) == wanted]
    near = [
        found
        for found in placed
        if (tokens(found) / ref.unit).quantize(digit, ROUND_HALF_UP) == ref.count
    ]
    return exact or sorted(near, key=lambda found: abs(tokens(found) - wanted))


def _none_at(ref: Ref, text: str, placed: Sequence[Artifact]) -> RefError:
    positions = [found.position for found in placed if found.position]
    if ref.step is not None:
        what, wanted, values = "steps", ref.step, {at.step for at in positions}
    else:
        what, wanted = "tokens", int((ref.count or 0) * ref.unit)
        values = {at.tokens for at in positions}
    known = sorted(values, key=lambda value: abs(value - wanted))
    return _none(text, what, [str(value) for value in known])


def _no_tag(ref: Ref, text: str, named: Sequence[Artifact]) -> RefError:
    known = sorted({tag for found in named for tag in found.tags})
    guess = nearest(ref.tag or "", known)
    if guess:
        todo = f"did you mean {text.removesuffix(ref.tag or '')}{guess}?"
        return RefError(f"no artifact answers to {text!r}", todo=todo)
    return _none(text, "tags", known)


def _none(text: str, what: str, known: Sequence[str]) -> RefError:
    todo = f"the nearest {what}: {', '.join(known[:5])}" if known else f"none has {what}"
    return RefError(f"no artifact answers to {text!r}", todo=todo)


def _only(found: Sequence[Artifact], text: str) -> Artifact:
    if len(found) > 1:
        raise _ambiguous(text, (artifact.ref for artifact in found))
    return found[0]


def _ambiguous(text: str, spelled: Iterable[str]) -> RefError:
    choices = list(dict.fromkeys(spelled))
    return RefError(f"{text!r} is ambiguous", todo=f"say which: {', '.join(choices[:8])}")


def _unknown(registry: Registry, ref: Ref, text: str, kind: Kind | None) -> Exception:
    known = {found.name for found in registry.list(kind)}
    guess = nearest(ref.name, sorted(known))
    if guess:
        todo = f"did you mean {guess!r}?"
    elif known:
        todo = "see `bc2 registry list`"
    else:
        todo = f"the registry {registry.home} has no {kind or 'artifact'} yet"
    return RefError(f"no artifact answers to {text!r}", todo=todo)
