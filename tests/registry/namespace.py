"""What the scripts of tests use that mount file systems or become another user.

Run as a script, by `unshare -m`: namespace.py TOP SCRIPT. Everything mounted is gone at its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bc2.console import warn
from bc2.registry import Artifact, Draft, Kind, Position, Registry, gc, stage_key

top = Path(sys.argv[1])
registry = Registry.open(top / "home")


def publish(name: str = "a", kind: Kind = "checkpoint", step: int = 1) -> Artifact:
    key = stage_key(kind, 1, {"name": name}, ())
    with registry.stage(Draft(kind, name, key, position=Position(step, step))) as staged:
        (staged.path / "sub").mkdir()
        (staged.path / "data.bin").write_bytes(f"{name}{step}".encode() * 50)
        (staged.path / "sub" / "more").write_bytes(b"more")
        return staged.publish()


def mount(kind: str, at: Path, *options: str) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", kind, *options, "none", str(at)], check=True)
    return at


def overlay(home: Path) -> None:
    """Mount over a home an overlay of which it is the lower layer."""
    upper = mount("tmpfs", top / "upper")
    (upper / "files").mkdir()
    (upper / "work").mkdir()
    layers = f"lowerdir={home},upperdir={upper}/files,workdir={upper}/work,redirect_dir=off"
    mount("overlay", home, "-o", layers)


def remove(*artifacts: Artifact) -> dict[str, Any]:
    done = gc.carry_out(gc.plan(registry, artifacts))
    return {
        "removed": [item.artifact.title for item in done.removed if item.artifact],
        "failed": [[error.what, error.where, error.todo] for error in done.failed],
        "listed": sorted(artifact.title for artifact in registry.list()),
    }


def as_user(act: Callable[[], Any], uid: int = 12345) -> Any:
    """What `act` returns, done by another user."""
    warn("imports what the other user may not be able to read")
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            text = json.dumps(act())
        except BaseException as error:
            text = json.dumps(repr(error))
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    os.wait()
    with os.fdopen(reading) as stream:
        return json.loads(stream.read())


def say(value: Any) -> None:
    print(json.dumps(value))


if __name__ == "__main__":
    exec(sys.argv[2])
