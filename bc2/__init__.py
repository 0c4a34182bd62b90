"""bc2: one command for the whole life of a large language model."""

import os

__version__ = "0.1.0"

#: What bc2 sets for its process, unless it is set already.
ENVIRONMENT = {
    # Nothing reports usage: set before any library that would read these is imported.
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # No plugin of pydantic is wanted; to look for some opens the metadata of every package.
    "PYDANTIC_DISABLE_PLUGINS": "1",
    # Idle threads of GNU OpenMP soon sleep instead of spinning. Where another process wants
    # the cores too, a step of training is several times as fast for it (docs/benchmarks.md).
    "GOMP_SPINCOUNT": "10000",
}

#: Set to 1 to have nothing set: for a benchmark's peer as it is without bc2.
KEEP_ENVIRONMENT = "BC2_KEEP_ENVIRONMENT"


def _has_name() -> bool:
    """Whether `getpass.getuser` finds a name; libraries that make caches ask it unguarded."""
    if any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        return True
    try:
        import pwd

        return bool(pwd.getpwuid(os.getuid()).pw_name)
    except (ImportError, KeyError):
        return False


if os.environ.get(KEEP_ENVIRONMENT) != "1":
    for _name, _value in ENVIRONMENT.items():
        os.environ.setdefault(_name, _value)
    # A container may run under a number that has no name.
    if not _has_name():
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
