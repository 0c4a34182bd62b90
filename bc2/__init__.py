"""bc2: one command for the whole life of a large language model."""

import os

__version__ = "0.1.0"

# Nothing reports usage: set before any library that would read these is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

# Idle threads of GNU OpenMP soon sleep instead of spinning. Where another process wants the
# cores too, a step of training is several times as fast for it (docs/benchmarks.md).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
