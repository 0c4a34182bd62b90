"""The registry: every artifact, what it is made of and where it came from.

An artifact is a plain directory with a manifest; publishing is atomic, and an
index that the manifests alone can rebuild makes finding quick. See
``docs/registry.md``.
"""

from bc2.registry.artifact import Artifact
from bc2.registry.catalog import find_home
from bc2.registry.draft import (
    KINDS,
    ROLES,
    Draft,
    Kind,
    Position,
    Role,
    check_name,
    stage_key,
)
from bc2.registry.staging import Staged
from bc2.registry.store import Registry

__all__ = [
    "KINDS",
    "ROLES",
    "Artifact",
    "Draft",
    "Kind",
    "Position",
    "Registry",
    "Role",
    "Staged",
    "check_name",
    "find_home",
    "stage_key",
]
