"""What is asked of the index and written to it, inside a transaction of `Index`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bc2.registry.artifact import Artifact
from bc2.registry.draft import SHORT, Kind, Position, Role, place_of, role_of
from bc2.registry.index import artifacts, parents, tags

#: Newest first, and the same order whatever the index has been through.
NEWEST = (artifacts.c.created.desc(), artifacts.c.digest)

Where = sa.ColumnElement[bool]

#: A statement takes a limited number of values: so many are safe everywhere, and quick.
_AT_ONCE = 500


def matching(
    kind: Kind | None = None,
    name: str | None = None,
    *,
    key: str | None = None,
    finished: bool | None = None,
    roles: Collection[Role] | None = None,
) -> list[Where]:
    """The conditions under which an artifact is what is asked for; None asks for nothing."""
    columns = artifacts.c
    where = [
        column == wanted
        for column, wanted in ((columns.kind, kind), (columns.name, name), (columns.key, key))
        if wanted is not None
    ]
    if finished is not None:
        where.append(columns.finished.is_(finished))
    if roles is not None:
        # A row of an earlier bc2 has no role: see `role_of`.
        recorded = sa.func.coalesce(columns.role, "base")
        where += [columns.kind == "checkpoint", recorded.in_(sorted(roles))]
    return where


def select(
    connection: sa.Connection,
    home: Path,
    *where: Where,
    order: Sequence[sa.ColumnElement[Any]] = NEWEST,
    limit: int | None = None,
) -> list[Artifact]:
    """The first `limit` artifacts for which all of `where` holds, in `order`.

    With their parents and tags; all of them if there is no limit.
    """
    rows = connection.execute(
        sa.select(artifacts).where(*where).order_by(*order).limit(limit)
    ).all()
    if not rows:
        return []
    chosen: Any = [row.digest for row in rows]
    if len(rows) > _AT_ONCE:
        chosen = sa.select(artifacts.c.digest).where(*where).order_by(*order).limit(limit)
    above: dict[str, list[str]] = {}
    for child, parent in connection.execute(
        sa.select(parents.c.child, parents.c.parent)
        .where(parents.c.child.in_(chosen))
        .order_by(parents.c.child, parents.c.position)
    ):
        above.setdefault(child, []).append(parent)
    named: dict[str, list[str]] = {}
    for digest, tag in connection.execute(
        sa.select(tags.c.digest, tags.c.tag)
        .where(tags.c.digest.in_(chosen))
        .order_by(tags.c.digest, tags.c.tag)
    ):
        named.setdefault(digest, []).append(tag)
    return [_artifact(row, home, above, named) for row in rows]


def _artifact(
    row: sa.Row[Any], home: Path, above: dict[str, list[str]], named: dict[str, list[str]]
) -> Artifact:
    kind: Kind = row.kind
    return Artifact(
        digest=row.digest,
        kind=kind,
        name=row.name,
        key=row.key,
        role=role_of(kind, row.role),
        position=None if row.step is None else Position(row.step, row.tokens),
        parents=tuple(above.get(row.digest, ())),
        finished=bool(row.finished),
        created=row.created,
        tags=tuple(named.get(row.digest, ())),
        path=home / "artifacts" / place_of(kind, row.name, row.digest),
    )


def count(connection: sa.Connection, *where: Where) -> int:
    """How many artifacts there are for which all of `where` holds."""
    return connection.scalar(sa.select(sa.func.count()).select_from(artifacts).where(*where)) or 0


def places(connection: sa.Connection) -> set[str]:
    """``KIND/NAME/DIGEST16`` of every artifact."""
    columns = artifacts.c
    rows = connection.execute(sa.select(columns.kind, columns.name, columns.digest))
    return {f"{kind}/{name}/{digest[:SHORT]}" for kind, name, digest in rows}


def kinds_of(connection: sa.Connection, name: str) -> list[Kind]:
    """The kinds of artifact that have a name, the one with the newest artifact first."""
    newest = sa.func.max(artifacts.c.created)
    found = sa.select(artifacts.c.kind).where(artifacts.c.name == name)
    return list(connection.scalars(found.group_by(artifacts.c.kind).order_by(newest.desc())))


def names(connection: sa.Connection, kind: Kind | None) -> list[str]:
    """Every name that an artifact (of a kind) has, sorted."""
    found = sa.select(artifacts.c.name).where(*matching(kind)).distinct()
    return sorted(connection.scalars(found))


def tags_of(connection: sa.Connection, kind: Kind, name: str) -> dict[str, str]:
    """What ``NAME:TAG`` means: tag -> digest, for every tag of a name."""
    same = (tags.c.kind == kind) & (tags.c.name == name)
    found = connection.execute(sa.select(tags.c.tag, tags.c.digest).where(same))
    return {row.tag: row.digest for row in found}


def positions_of(connection: sa.Connection, kind: Kind, name: str) -> list[Position]:
    """The positions of the artifacts of a kind and a name that have one."""
    placed = sa.select(artifacts.c.step, artifacts.c.tokens).where(*matching(kind, name))
    found = connection.execute(placed.where(artifacts.c.step.is_not(None)))
    return [Position(step, tokens) for step, tokens in found]


def ended(connection: sa.Connection, keys: Collection[str]) -> set[str]:
    """Those of `keys` under which a finished checkpoint is registered."""
    finished = matching("checkpoint", finished=True)
    found: set[str] = set()
    asked = sorted(keys)
    for at in range(0, len(asked), _AT_ONCE):
        some = artifacts.c.key.in_(asked[at : at + _AT_ONCE])
        keyed = sa.select(artifacts.c.key).where(*finished, some).distinct()
        found.update(connection.scalars(keyed))
    return found


def has(connection: sa.Connection, digest: str) -> bool:
    """Whether an artifact is registered."""
    found = sa.select(artifacts.c.digest).where(artifacts.c.digest == digest)
    return connection.scalar(found) is not None


def absent(connection: sa.Connection, digests: Iterable[str]) -> list[str]:
    """Those of `digests` that are not registered, in their order."""
    return [digest for digest in digests if not has(connection, digest)]


def children(digest: str) -> Where:
    """True of the artifacts that have `digest` among their parents."""
    below = sa.select(parents.c.child).where(parents.c.parent == digest)
    return artifacts.c.digest.in_(below)


def insert(connection: sa.Connection, artifact: Artifact) -> None:
    """Register an artifact; of one registered already, only the time and role may differ."""
    if has(connection, artifact.digest):
        same = artifacts.c.digest == artifact.digest
        recorded = {"created": artifact.created, "role": artifact.role}
        connection.execute(artifacts.update().where(same).values(recorded))
        return
    position = artifact.position
    connection.execute(
        artifacts.insert().values(
            digest=artifact.digest,
            kind=artifact.kind,
            name=artifact.name,
            key=artifact.key,
            step=position.step if position else None,
            tokens=position.tokens if position else None,
            finished=artifact.finished,
            created=artifact.created,
            role=artifact.role,
        )
    )
    for place, parent in enumerate(artifact.parents):
        row = {"child": artifact.digest, "position": place, "parent": parent}
        connection.execute(parents.insert().values(row))


def delete(connection: sa.Connection, digest: str) -> None:
    """Forget an artifact and what it was made from. Its tags are the caller's matter."""
    connection.execute(artifacts.delete().where(artifacts.c.digest == digest))
    connection.execute(parents.delete().where(parents.c.child == digest))


def set_tag(connection: sa.Connection, kind: str, name: str, tag: str, digest: str) -> None:
    """Point ``NAME:TAG`` at `digest`, whatever it pointed at before."""
    drop_tag(connection, kind, name, tag)
    connection.execute(tags.insert().values(kind=kind, name=name, tag=tag, digest=digest))


def drop_tag(connection: sa.Connection, kind: str, name: str, tag: str) -> None:
    """Forget ``NAME:TAG``."""
    same = (tags.c.kind == kind) & (tags.c.name == name) & (tags.c.tag == tag)
    connection.execute(tags.delete().where(same))
