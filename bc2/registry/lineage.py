"""Where an artifact comes from, or what came of it, as a graph to draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bc2.errors import RefError
from bc2.registry.artifact import Artifact
from bc2.registry.catalog import Catalog
from bc2.registry.draft import SHORT, Kind

if TYPE_CHECKING:
    from rich.tree import Tree


@dataclass(frozen=True)
class Lineage:
    """The ancestors of an artifact, or its descendants if `down`."""

    root: Artifact
    down: bool
    nodes: dict[str, Artifact | None]
    """By digest, the root first; None for one that is not registered here."""
    steps: dict[str, list[str]]
    """From each digest to the next ones, away from the root."""

    def edges(self) -> Iterator[tuple[str, str]]:
        """(child, parent) digests."""
        for here, nexts in self.steps.items():
            for there in nexts:
                yield (there, here) if self.down else (here, there)

    def as_json(self) -> dict[str, Any]:
        """Root, nodes and edges, by full digest."""
        return {
            "root": self.root.digest,
            "direction": "down" if self.down else "up",
            "nodes": [_node(digest, found) for digest, found in self.nodes.items()],
            "edges": [self._edge(child, parent) for child, parent in self.edges()],
        }

    def _edge(self, child: str, parent: str) -> dict[str, Any]:
        part = self._part(child, parent)
        return {"child": child, "parent": parent, **({"as": part} if part else {})}

    def _part(self, child: str, parent: str) -> str | None:
        """What part a model has in one that was merged of several."""
        merged = self.nodes[child]
        if merged is None or merged.role != "merged":
            return None
        parts = merged.manifest.facts.get("merged_from", [])
        return next((str(one["as"]) for one in parts if one["digest"] == parent), None)

    def as_dot(self) -> str:
        """A Graphviz graph; arrows point from parents to children."""
        lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
        for digest, found in self.nodes.items():
            style = "" if found else ", style=dashed"
            label = f"{_title(digest, found)}\\n{digest[:SHORT]}"
            lines.append(f'  "{digest[:SHORT]}" [label="{label}"{style}];')
        lines += [f'  "{up[:SHORT]}" -> "{down[:SHORT]}";' for down, up in self.edges()]
        return "\n".join([*lines, "}"])

    def as_tree(self) -> Tree:
        """For a terminal; what appears twice is drawn out the first time only."""
        from rich.tree import Tree

        tree = Tree(_label(self.root.digest, self.root))
        self._grow(tree, self.root.digest, {self.root.digest})
        return tree

    def _grow(self, branch: Tree, digest: str, drawn: set[str]) -> None:
        for there in self.steps.get(digest, []):
            again = there in drawn
            more = " (see above)" if again and self.steps.get(there) else ""
            part = self._part(*((there, digest) if self.down else (digest, there)))
            said = f"  {part}" if part else ""
            below = branch.add(_label(there, self.nodes[there]) + said + more)
            if not again:
                drawn.add(there)
                self._grow(below, there, drawn)


def trace(catalog: Catalog, artifact: Artifact, *, down: bool = False) -> Lineage:
    """Follow parents, or children if `down`, from `artifact` to the ends."""
    nodes: dict[str, Artifact | None] = {artifact.digest: artifact}
    steps: dict[str, list[str]] = {}
    waiting = [artifact]
    while waiting:
        here = waiting.pop(0)
        near = catalog.children(here) if down else catalog.parents(here)
        found = {one.digest: one for one in near}
        digests = list(found) if down else list(dict.fromkeys(here.parents))
        steps[here.digest] = digests
        for digest in digests:
            if digest not in nodes:
                nodes[digest] = found.get(digest)
                waiting += [found[digest]] if digest in found else []
    return Lineage(artifact, down, nodes, {here: there for here, there in steps.items() if there})


def _node(digest: str, found: Artifact | None) -> dict[str, Any]:
    if found is None:
        return {"digest": digest, "here": False}
    return {
        "digest": digest,
        "here": True,
        "kind": found.kind,
        "name": found.name,
        "title": found.title,
        "created": found.created,
        "tags": list(found.tags),
    }


def _title(digest: str, found: Artifact | None) -> str:
    return found.title if found else "not here"


def _label(digest: str, found: Artifact | None) -> str:
    tags = f" :{' :'.join(found.tags)}" if found and found.tags else ""
    return f"{_title(digest, found)}{tags}  {digest[:SHORT]}"


def parent_of_kind(registry: Catalog, artifact: Artifact, kind: Kind) -> Artifact:
    """The first parent of a kind, such as the tokenizer of token shards.

    Raises:
        RefError: the artifact has none, or it is not registered here.
    """
    for parent in registry.parents(artifact):
        if parent.kind == kind:
            return parent
    raise RefError(
        f"{artifact.title} has no {kind} among its parents",
        where=str(artifact.path),
        todo=f"name one that bc2 made, or import its {kind} as well",
    )
