"""Which files a program may read: Python's own, and the libraries it loads."""

from __future__ import annotations

import os
import sys
import sysconfig

#: Where shared libraries and time zones are on most systems.
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")

#: Devices that hold nothing.
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def module_folders() -> list[str]:
    """Folders of this interpreter's modules: the standard library and installed packages.

    What a .pth file adds is taken only if it is a folder of packages too: an editable
    install would let programs read a checkout.
    """
    standard = [p for p in sys.path if p and _is_standard(p)]
    packages = [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")]
    return [path for path in dict.fromkeys(standard + packages) if os.path.isdir(path)]


def _is_standard(path: str) -> bool:
    stdlib = sysconfig.get_path("stdlib")
    return path in (stdlib, sysconfig.get_path("platstdlib"), os.path.join(stdlib, "lib-dynload"))


def readable_paths() -> list[str]:
    """Folders and files, none inside another one of the list.

    Not a whole prefix: `sys.prefix` may be a virtual environment within a project, or
    hold the environments of others.
    """
    libraries = [os.path.join(sys.base_prefix, "lib"), os.path.join(sys.prefix, "lib")]
    found: list[str] = []
    for path in sorted({*module_folders(), *libraries, *SYSTEM}):
        inside = any(_inside(path, other) for other in found)
        if os.path.exists(path) and not inside:
            found.append(path)
    return found


def _inside(path: str, other: str) -> bool:
    """Whether `path` is what one finds by its name below `other`, no link leading out."""
    if not path.startswith(other + "/"):
        return False
    return os.path.realpath(path) == os.path.realpath(other) + path[len(other) :]
