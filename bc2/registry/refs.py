"""Refs: how a person names an artifact.

A path to one; ``hf://OWNER/NAME``, with ``@REVISION`` or without, of a model that was imported;
else ``KIND/NAME`` or ``NAME``, alone (the newest) or with ``@1000`` (step), ``@220B`` (tokens; K,
M, B, T) or ``:TAG``; else 8 or more digits of its digest. The first of these that means anything
wins. What only one artifact of the name can mean is that one, whatever other kinds have the name
too.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from bc2.errors import RefError, nearest
from bc2.registry import index as ix
from bc2.registry import queries
from bc2.registry.artifact import Artifact
from bc2.registry.catalog import Catalog
from bc2.registry.draft import KINDS, NAME, Kind, Role, spell_roles
from bc2.user_paths import expand_if_known

#: What the name of a model on a hub begins with: ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REV``.
HUB = "hf://"

#: The fact of an imported artifact that lists its names on a hub: by commit, and as asked for.
HUB_NAMES = "hub_names"

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

_REF = re.compile(
    rf"(?:(?P<kind>{'|'.join(KINDS)})/)?(?P<name>{NAME.pattern})"
    rf"(?:@(?P<step>[0-9]+)|@(?P<count>[0-9]+(?:\.[0-9]+)?)(?P<unit>[KMBT])"
    rf"|:(?P<tag>{NAME.pattern}))?"
)
_DIGEST = re.compile(r"[0-9a-fA-F]{8,64}")
#: What reads what can be taken for one another, for messages.
_READERS: dict[Kind, str] = {
    "chats": "`bc2 sft` reads",
    "pairs": "`bc2 reward` and `bc2 dpo` read",
}
#: The largest number that the index holds.
_LARGEST = 2**63 - 1


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


def resolve(
    catalog: Catalog, text: str, kind: Kind | None = None, roles: Collection[Role] | None = None
) -> Artifact:
    """The one artifact that `text` names.

    Args:
        catalog: where to look.
        text: a ref, or the path of an artifact's directory.
        kind: the kind that is needed, which also settles a name that several kinds have.
        roles: of a checkpoint, those that are needed, which also settle a name, a step or a
            number of tokens at which there are several.

    Raises:
        RefError: nothing answers to it, several do, or it is of another kind or role; or it is
            the name of a model on a hub that was not imported.
    """
    if text.startswith(HUB):
        return _usable(_imported(catalog, text, kind), text, kind, roles)
    folder = expand_if_known(text)
    # Not of pathlib: it raises for a path that is too long.
    if os.path.isfile(folder / "manifest.json"):
        return _usable(at_path(catalog, folder), text, kind, roles)
    ref = parse(text)
    if ref is None:
        raise RefError(
            f"no artifact at {text!r}, and it is not a ref",
            todo="write NAME, KIND/NAME, NAME@STEP, NAME@220B, NAME:TAG, or 8 digits of a digest",
        )
    named = [found for found in _kinds(catalog, ref.name) if ref.kind in (None, found)]
    wanted = [found for found in named if kind in (None, found)]
    if wanted:
        return _pick(_answers(catalog, ref, text, wanted, roles), ref, text, roles)
    if ref.bare and _DIGEST.fullmatch(text) and (found := catalog.with_prefix(text.lower())):
        return _usable(_only(found, text), text, kind, roles)
    if named:
        raise _other_kind(text, named[0], kind)
    raise _unknown(catalog, ref, text, kind)


def not_imported(name: str, where: str | None = None) -> RefError:
    """The error for the name of a model on a hub where only an artifact will do."""
    return RefError(
        f"{name} is on a hub, and the ref of an imported model is needed",
        where=where,
        todo=f"import it first: bc2 registry import {shlex.quote(name)}",
    )


def _imported(catalog: Catalog, text: str, kind: Kind | None) -> Artifact:
    """What was imported from a hub by this name, or as this commit; the newest of several.

    Raises:
        RefError: nothing was.
    """
    wanted = text if "@" in text else f"{text}@main"
    for artifact in catalog.list(kind or "checkpoint"):
        # What was imported is of no run, and so at no position.
        if artifact.position is None and wanted in artifact.manifest.facts.get(HUB_NAMES, ()):
            return artifact
    raise not_imported(text)


def _kinds(catalog: Catalog, name: str) -> list[Kind]:
    if catalog.is_blank():
        return []
    with catalog.index.reading() as connection:
        return queries.kinds_of(connection, name)


def at_path(catalog: Catalog, folder: Path) -> Artifact:
    """The artifact in a directory: a registered one, or one from outside the registry.

    Raises:
        RefError: it lies in the registry's home without being registered.
        IntegrityError: its manifest is broken.
    """
    from bc2.registry.manifest import read

    folder = folder.absolute()
    artifact = Artifact.of(read(folder), folder)
    if not folder.resolve().is_relative_to(catalog.home.resolve()):
        return artifact
    for known in catalog.with_prefix(artifact.digest):
        if known.path.resolve() == folder.resolve():
            return known
    raise RefError(
        "this directory is not a published artifact",
        where=str(folder),
        todo="run its stage again; `bc2 registry rebuild` adopts complete ones",
    )


def _usable(
    artifact: Artifact, text: str, kind: Kind | None, roles: Collection[Role] | None
) -> Artifact:
    if kind is not None and artifact.kind != kind:
        raise _other_kind(text, artifact.kind, kind)
    return _pick([artifact], Ref(text), text, roles)


def _other_kind(text: str, found: Kind, kind: Kind | None) -> RefError:
    reader = _READERS.get(found)
    return RefError(
        f"{text!r} is a {found}, and a {kind} is needed",
        todo=None if reader is None else f"{found} are what {reader} to learn from",
    )


def _pick(
    answers: Sequence[Artifact], ref: Ref, text: str, roles: Collection[Role] | None
) -> Artifact:
    """The first of what answers to a ref, of those in a role that the caller can use."""
    usable = [found for found in answers if roles is None or found.role in roles]
    if not usable:
        raise RefError(
            f"{text!r} is a {answers[0].kind} of role {answers[0].role}, and one of role "
            f"{spell_roles(roles or ())} is needed",
            where=answers[0].title,
            todo=f"see `bc2 registry list --kind {answers[0].kind}`",
        )
    if len({found.kind for found in usable}) > 1:
        spelled = text.removeprefix(f"{ref.kind}/")
        raise _ambiguous(text, (f"{found.kind}/{spelled}" for found in usable))
    if len({found.key for found in usable}) > 1:
        raise _ambiguous(text, (found.ref for found in usable))
    return usable[0]


def _answers(
    catalog: Catalog,
    ref: Ref,
    text: str,
    kinds: Sequence[Kind],
    roles: Collection[Role] | None,
) -> list[Artifact]:
    """What answers to a ref among the artifacts of its name in some kinds, the best first.

    Those in a role that is needed; if there are none, the others, to say what there is.

    Raises:
        RefError: nothing does.
    """
    if ref.tag is not None:
        return _tagged(catalog, ref, text, kinds)
    found = _matching(catalog, ref, kinds, roles) or _matching(catalog, ref, kinds, None)
    if not found:
        raise _none_at(catalog, ref, text, kinds)
    return found


def _matching(
    catalog: Catalog, ref: Ref, kinds: Sequence[Kind], roles: Collection[Role] | None
) -> list[Artifact]:
    if ref.step is None and ref.count is None:
        return [
            newest
            for kind in kinds
            for newest in catalog.select(*queries.matching(kind, ref.name, roles=roles), limit=1)
        ]
    named = [*queries.matching(None, ref.name, roles=roles), ix.artifacts.c.kind.in_(kinds)]
    if ref.step is not None:
        step = min(ref.step, _LARGEST)
        return catalog.select(*named, ix.artifacts.c.step == step)
    low, high = (min(limit, _LARGEST) for limit in _rounded(ref))
    near = ix.artifacts.c.tokens.between(low, high)
    return _at_tokens(ref, catalog.select(*named, near))


def _tagged(catalog: Catalog, ref: Ref, text: str, kinds: Sequence[Kind]) -> list[Artifact]:
    """The artifact with the tag, of each kind that has one."""
    assert ref.tag is not None
    with catalog.index.reading() as connection:
        tags = {kind: queries.tags_of(connection, kind, ref.name) for kind in kinds}
    digests = [known[ref.tag] for known in tags.values() if ref.tag in known]
    if not digests:
        raise _no_tag(ref, text, sorted({tag for known in tags.values() for tag in known}))
    return [catalog.get(digest) for digest in digests]


def _rounded(ref: Ref) -> tuple[int, int]:
    """Between which numbers of tokens everything lies that rounds to what `ref` says."""
    assert ref.count is not None
    half = Decimal(1).scaleb(int(ref.count.as_tuple().exponent)) / 2
    return int((ref.count - half) * ref.unit), int((ref.count + half) * ref.unit) + 1


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


def _none_at(catalog: Catalog, ref: Ref, text: str, kinds: Sequence[Kind]) -> RefError:
    with catalog.index.reading() as connection:
        found = [queries.positions_of(connection, kind, ref.name) for kind in kinds]
    positions = [position for of_kind in found for position in of_kind]
    if ref.step is not None:
        what, wanted, values = "steps", ref.step, {at.step for at in positions}
    else:
        what, wanted = "tokens", int((ref.count or 0) * ref.unit)
        values = {at.tokens for at in positions}
    known = sorted(values, key=lambda value: abs(value - wanted))
    return _none(text, what, [str(value) for value in known])


def _no_tag(ref: Ref, text: str, known: Sequence[str]) -> RefError:
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


def _unknown(catalog: Catalog, ref: Ref, text: str, kind: Kind | None) -> RefError:
    known = _names(catalog, kind)
    guess = nearest(ref.name, known)
    if guess:
        todo = f"did you mean {guess!r}?"
    elif known:
        todo = "see `bc2 registry list`"
    else:
        todo = f"the registry {catalog.home} has no {kind or 'artifact'} yet"
    return RefError(f"no artifact answers to {text!r}", todo=todo)


def _names(catalog: Catalog, kind: Kind | None) -> list[str]:
    if catalog.is_blank():
        return []
    with catalog.index.reading() as connection:
        return queries.names(connection, kind)
