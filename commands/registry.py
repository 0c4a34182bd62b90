"""`bc2 registry`: list, show, trace, verify, tag, clean, import and rebuild."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bc2.console import Output, note, table, warn
from bc2.errors import Bc2Error, DataError, IntegrityError, RunFailed, UsageError, nearest
from bc2.options import Json, Quiet, verb
from bc2.user_paths import expand_user

if TYPE_CHECKING:
    from bc2.registry import Artifact, Kind, Registry, Role
    from bc2.registry.gc import Doomed

app = verb()

Ref = Annotated[str, typer.Argument(metavar="REF", help="A name, a digest or a path.")]
Refs = Annotated[list[str] | None, typer.Argument(metavar="[REF]...", help="Names or digests.")]
KindName = Annotated[str | None, typer.Option("--kind", help="One kind of artifact only.")]

#: How many artifacts `list` shows unless it is told otherwise.
NEWEST = 50


@app.callback(help="List, trace, verify and clean registered artifacts.")
def _registry() -> None:
    """The verbs are below."""


def _kind(kind: str | None) -> Kind | None:
    from bc2.registry.draft import check_kind

    return check_kind(kind) if kind else None


def _role(role: str | None) -> Role | None:
    from bc2.registry.draft import check_role

    return check_role(role) if role else None


def brief(artifact: Artifact) -> dict[str, Any]:
    """An artifact as the index knows it, as JSON data."""
    return {
        "ref": artifact.ref,
        "digest": artifact.digest,
        "kind": artifact.kind,
        "name": artifact.name,
        "key": artifact.key,
        "role": artifact.role,
        "position": asdict(artifact.position) if artifact.position else None,
        "finished": artifact.finished,
        "created": artifact.created,
        "tags": list(artifact.tags),
        "parents": list(artifact.parents),
        "path": str(artifact.path),
    }


@app.command("list")
def list_(
    kind: KindName = None,
    name: Annotated[str | None, typer.Option("--name", help="One name only.")] = None,
    role: Annotated[str | None, typer.Option("--role", help="Checkpoints of one role.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="The newest N; 0: all.")
    ] = NEWEST,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the registered artifacts, newest first."""
    from bc2.registry import Registry

    registry = Registry.open()
    asked, of = _kind(kind), _role(role)
    roles = (of,) if of else None
    # SQL takes no larger number.
    limit = min(limit, 2**63 - 1)
    found = registry.list(asked, name, roles=roles, limit=limit or None)
    total = len(found) if len(found) != limit else registry.count(asked, name, roles=roles)
    if total > len(found):
        note(f"{total - len(found):,} older ones are not shown: --limit 0 lists all {total:,}")
    _say_forgotten(registry.forgotten())
    Output.of(json=json, quiet=quiet).emit(
        {
            "home": str(registry.home),
            "total": total,
            "artifacts": [brief(artifact) for artifact in found],
        },
        table=_listed(registry, found) if found else _nothing(registry, kind, name, role),
        quiet=[artifact.ref for artifact in found],
    )


def _say_forgotten(forgotten: list[Artifact]) -> None:
    """That there are artifacts which the index does not know, in one line."""
    if forgotten:
        some = ", ".join(artifact.title for artifact in forgotten[:3])
        more = ", …" if len(forgotten) > 3 else ""
        warn(
            f"{len(forgotten):,} in place and not in the index ({some}{more}): "
            "`bc2 registry rebuild` adopts them"
        )


def _nothing(registry: Registry, kind: str | None, name: str | None, role: str | None) -> str:
    """Why there is nothing to list: an empty registry, or what was asked for."""
    filters = {"--kind": kind, "--name": name, "--role": role}
    asked = [f"{option} {value}" for option, value in filters.items() if value is not None]
    others = registry.count() if asked else 0
    if not others:
        return f"nothing is registered in {registry.home}"
    return f"none of the {others:,} artifacts in {registry.home} matches {' '.join(asked)}"


def _listed(registry: Registry, found: list[Artifact]) -> Any:
    """A table of artifacts, newest first."""
    ended = registry.ended(found)
    rows = [
        [
            artifact.ref,
            artifact.kind,
            artifact.name,
            artifact.role or "",
            artifact.position.step if artifact.position else "",
            artifact.position.tokens if artifact.position else "",
            "" if artifact.finished else "earlier" if artifact.key in ended else "unfinished",
            " ".join(artifact.tags),
            artifact.created[:19].replace("T", " "),
        ]
        for artifact in found
    ]
    return table(
        ["ref", "kind", "name", "role", "step", "tokens", "run", "tags", "created (UTC)"], rows
    )


@app.command()
def show(ref: Ref, kind: KindName = None, json: Json = False, quiet: Quiet = False) -> None:
    """Show one artifact: what it is, its files, and how it was made."""
    from bc2.registry import Registry

    registry = Registry.open()
    artifact = registry.resolve(ref, _kind(kind))
    manifest = artifact.manifest
    # What is said of the role is what an artifact without a recorded one is taken for.
    recorded = manifest.model_dump(mode="json", exclude={"seal", "role"})
    below = registry.children(artifact)
    value = {
        **brief(artifact),
        **recorded,
        "size": manifest.size,
        "children": [child.digest for child in below],
    }
    Output.of(json=json, quiet=quiet).emit(
        value, table=_shown(artifact, value), quiet=[artifact.ref]
    )


def _shown(artifact: Artifact, value: dict[str, Any]) -> str:
    at = artifact.position
    run = f"step {at.step:,}, {at.tokens:,} tokens" if at else ""
    rows = [
        ["artifact", artifact.title],
        ["digest", artifact.digest],
        ["key", artifact.key],
        ["role", artifact.role or ""],
        ["position", run],
        ["finished", "yes" if artifact.finished else "no: its run was still going"],
        ["tags", " ".join(artifact.tags)],
        ["parents", " ".join(parent[:16] for parent in artifact.parents)],
        ["children", " ".join(child[:16] for child in value["children"])],
        ["created", artifact.created],
        ["code", " ".join(str(part) for part in value["code"].values() if part)],
        ["path", str(artifact.path)],
        ["files", f"{len(value['files']):,} ({value['size']:,} bytes)"],
        *(["", f"{entry['path']}  {entry['size']:,}"] for entry in value["files"][:10]),
        *(["fact", f"{name} = {_fact(name, fact)}"] for name, fact in value["facts"].items()),
    ]
    return "\n".join(f"{label:<10}{text}" for label, text in rows if text)


def _fact(name: str, fact: Any) -> Any:
    """As it is; of the tables of pairs, which --json has, only how many are in order."""
    from bc2.align.pairs.preference_rows import PREFERENCE, accuracy_text

    return accuracy_text(fact) if name == PREFERENCE else fact


@app.command()
def lineage(
    ref: Ref,
    down: Annotated[bool, typer.Option("--down", help="What was made from it.")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="Print a Graphviz graph.")] = False,
    kind: KindName = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw what an artifact was made from."""
    from bc2.registry import Registry
    from bc2.registry.lineage import trace

    if dot and (json or quiet):
        raise UsageError("--dot does not go with --json or --quiet")
    registry = Registry.open()
    found = trace(registry, registry.resolve(ref, _kind(kind)), down=down)
    Output.of(json=json, quiet=quiet).emit(
        found.as_json(),
        table=found.as_dot() if dot else found.as_tree(),
        quiet=[digest[:16] for digest in found.nodes],
    )


@app.command()
def verify(
    refs: Refs = None, kind: KindName = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Read every byte of the named artifacts, or of all, and compare with the manifests."""
    from bc2.registry import Registry

    registry = Registry.open()
    wanted = _kind(kind)
    chosen = [registry.resolve(ref, wanted) for ref in refs] if refs else registry.list(wanted)
    errors = [_damage(registry, artifact) for artifact in chosen]
    results = [
        {
            "ref": artifact.ref,
            "title": artifact.title,
            "ok": error is None,
            "error": error.what if error else None,
            "where": error.where if error else None,
            "parents_not_here": _absent_parents(registry, artifact),
        }
        for artifact, error in zip(chosen, errors, strict=True)
    ]
    rows = [[result["ref"], result["title"], _state(result)] for result in results]
    broken = [error for error in errors if error]
    Output.of(json=json, quiet=quiet).emit(
        {"checked": len(chosen), "broken": len(broken), "artifacts": results},
        table=table(["ref", "artifact", "state"], rows) if rows else "nothing is registered",
        quiet=[str(result["ref"]) for result in results if result["ok"]],
    )
    if broken:
        what = f"{len(broken)} of {len(chosen)} artifacts are damaged: {broken[0].what}"
        raise IntegrityError(what, where=broken[0].where, todo=broken[0].todo)


def _damage(registry: Registry, artifact: Artifact) -> Bc2Error | None:
    try:
        registry.verify(artifact)
    except (IntegrityError, DataError) as error:
        return error
    return None


def _absent_parents(registry: Registry, artifact: Artifact) -> list[str]:
    here = {parent.digest for parent in registry.parents(artifact)}
    return [digest for digest in artifact.parents if digest not in here]


def _state(result: dict[str, Any]) -> str:
    absent = len(result["parents_not_here"])
    state = "ok" if result["ok"] else f"{result['error']}: {result['where']}"
    return f"{state} ({absent} parents not here)" if absent else state


@app.command()
def tag(
    ref: Ref,
    name: Annotated[str, typer.Argument(metavar="TAG", help="A name such as best.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove the tag.")] = False,
    kind: KindName = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Point NAME:TAG at an artifact, or remove the tag."""
    from bc2.registry import Registry

    registry = Registry.open()
    registry.check_writable()
    artifact = registry.resolve(ref, _kind(kind))
    (registry.untag if delete else registry.tag)(artifact, name)
    artifact = registry.get(artifact.digest)
    Output.of(json=json, quiet=quiet).emit(
        brief(artifact),
        table=f"{artifact.title} {artifact.ref}: {' '.join(artifact.tags) or 'no tags'}",
        quiet=[artifact.ref],
        kept=True,
    )


@app.command()
def gc(
    refs: Refs = None,
    keep_last: Annotated[
        int | None,
        typer.Option("--keep-last", metavar="N", help="Keep N checkpoints of a run still going."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only show it.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what nobody needs, and remove it with --yes."""
    from bc2.registry import Registry
    from bc2.registry.gc import Done, carry_out, choose, left_alone, plan

    registry = Registry.open()
    if yes:
        registry.check_writable()
    chosen = [choose(registry, ref) for ref in refs or []]
    folders = [one for one in chosen if isinstance(one, Path)]
    artifacts = [one for one in chosen if not isinstance(one, Path)]
    doomed = plan(registry, artifacts, keep_last, folders)
    done = carry_out(doomed) if yes else Done([], [])
    for item, why in done.kept:
        warn(f"kept {item.path}: {why}")
    for folder, why in left_alone(registry):
        if folder not in folders:
            warn(f"left {folder}: not in the index; {why}")
    rows = [
        [item.artifact.title if item.artifact else item.path.name, item.why, item.size]
        for item in (done.removed if yes else doomed)
    ]
    drawn = table(["removed" if yes else "would be removed", "why", "bytes"], rows)
    Output.of(json=json, quiet=quiet).emit(
        {
            "removed": [_gone(item) for item in done.removed],
            "kept": [{**_gone(item), "because": why} for item, why in done.kept],
            "would_remove": [] if yes else [_gone(item) for item in doomed],
        },
        table=drawn if rows else "nothing was removed" if done.kept else "nothing to remove",
        quiet=[item.artifact.ref for item in (done.removed if yes else doomed) if item.artifact],
        kept=yes,
    )
    if done.failed:
        first = done.failed[0]
        raise RunFailed(
            f"{len(done.failed)} of {len(doomed)} could not be removed: {first.what}",
            where=first.where,
            todo=first.todo,
        )


def _gone(item: Doomed) -> dict[str, Any]:
    return {
        "path": str(item.path),
        "ref": item.artifact.ref if item.artifact else None,
        "title": item.artifact.title if item.artifact else None,
        "why": item.why,
        "bytes": item.size,
    }


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH|hf://OWNER/NAME@REV",
            help="An artifact, a model as Hugging Face lays it out, or any directory.",
        ),
    ],
    kind: Annotated[str | None, typer.Option("--kind", help="Of a plain directory.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of a model, or of a plain directory.")
    ] = None,
    role: Annotated[
        str | None, typer.Option("--role", help="Of a checkpoint; base, or chat with a layout.")
    ] = None,
    chat_layout: Annotated[
        str | None,
        typer.Option(
            "--chat-layout", metavar="NAME", help="Of a model: baichuan, chatml, llama3 or none."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a model of another family, an artifact of another registry or a directory into this.

    Baichuan, Llama, Mistral, Qwen2 and Qwen3 models become checkpoints like those trained here.
    """
    from bc2.registry import Registry
    from bc2.registry.importing import import_artifact, import_directory
    from bc2.registry.refs import HUB

    registry = Registry.open()
    registry.check_writable()
    wanted, path = _kind(kind), expand_user(source, "PATH")
    if chat_layout is not None and (wanted or (path / "manifest.json").exists()):
        raise UsageError("--chat-layout is for a model of another family", where=source)
    if wanted and name:
        artifact = import_directory(registry, path, wanted, name, _role(role))
    elif wanted:
        raise UsageError("a plain directory needs a name", todo="give --name with --kind")
    elif (path / "manifest.json").exists():
        if name or role:
            raise UsageError("an artifact keeps its name and role", todo="give neither")
        artifact = import_artifact(registry, path)
    else:
        if chat_layout is not None:
            _check_layout(chat_layout)
        hub = source.startswith(HUB)
        if not hub:
            _check_is_model(path)
        from bc2.convert.importing.import_model import import_model

        artifact = import_model(
            registry, source if hub else path, name=name, role=_role(role), chat_layout=chat_layout
        )
    if artifact.kind == "tokenizer":
        _say_what_is_lost(artifact)
    Output.of(json=json, quiet=quiet).emit(
        brief(artifact), table=f"{artifact.title} {artifact.ref}", quiet=[artifact.ref], kept=True
    )


def _say_what_is_lost(tokenizer: Artifact) -> None:
    """Warn of the kinds of text that an imported tokenizer does not give back."""
    from bc2.tokenizer.round_trip import lost_sentence
    from bc2.tokenizer.tokenizer import Tokenizer
    from bc2.tokenizer.tokenizer_files import tokenizer_path

    try:
        lost = Tokenizer.load(tokenizer_path(tokenizer)).lost
    except DataError as error:
        warn(f"registered, but no stage can use it: {error}")
    else:
        if lost:
            warn(lost_sentence(lost))


def _check_layout(name: str) -> None:
    """Raises: UsageError: there is no such chat layout."""
    from bc2.convert.importing.speech import NO_LAYOUT
    from bc2.tokenizer.chat_layouts import LAYOUTS

    known = [*LAYOUTS, NO_LAYOUT]
    if name not in known:
        guess = nearest(name, known)
        raise UsageError(
            f"no such chat layout: {name!r}",
            where="--chat-layout",
            todo=f"did you mean {guess!r}?" if guess else f"there are: {', '.join(known)}",
        )


def _check_is_model(path: Path) -> None:
    """Raises: UsageError for a directory that is neither an artifact nor somebody's model."""
    models = ("config.json", "adapter_config.json")
    if not path.is_dir() or any((path / name).exists() for name in models):
        return
    raise UsageError(
        "this is neither an artifact nor a model with a config.json",
        where=str(path),
        todo="give --kind and --name to register a plain directory",
    )


@app.command()
def rebuild(json: Json = False, quiet: Quiet = False) -> None:
    """Make the index anew from the manifests and tags on disk."""
    from bc2.registry import Registry

    registry = Registry.open()
    registry.check_writable()
    found = registry.rebuild()
    for artifact in found.dropped:
        warn(f"{artifact.title} {artifact.ref} has no files any more: forgotten")
    for error in found.broken:
        warn(f"not registered: {error}")
    Output.of(json=json, quiet=quiet).emit(
        {
            "artifacts": len(found.artifacts),
            "adopted": [brief(artifact) for artifact in found.adopted],
            "dropped": [brief(artifact) for artifact in found.dropped],
            "broken": [{"what": error.what, "where": error.where} for error in found.broken],
        },
        table=f"{len(found.artifacts)} artifacts, {len(found.adopted)} of them new in the index",
        quiet=[artifact.ref for artifact in found.artifacts],
        kept=True,
    )
    if found.broken:
        raise IntegrityError(
            f"{len(found.broken)} things on disk are damaged",
            where=found.broken[0].where,
            todo="see the warnings; `bc2 registry verify` reads every file",
        )
