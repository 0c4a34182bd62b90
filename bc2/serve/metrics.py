"""What a server counts and measures, as Prometheus reads it.

Counters of the engines are read where they are, when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from bc2.serve.lane import Lane
    from bc2.serve.reward_lane import RewardLane

#: Bounds of the histograms' buckets, seconds.
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)

#: Counters of `EngineStats`, and states of an engine, with what they are.
_COUNTS = {
    "prompt_tokens": "Tokens read that were not chosen in the pass before.",
    "shared_tokens": "Tokens whose keys were in the cache already.",
    "new_tokens": "Tokens chosen.",
    "preemptions": "Sequences that had to give their memory back for a while.",
}
_STATES = {
    "cache_blocks": "Blocks of the cache.",
    "cache_blocks_used": "Blocks of the cache that a sequence holds.",
    "requests_waiting": "Sequences that wait for room in the cache.",
}
#: The same of reward models.
_REWARD_COUNTS = {
    "scored_answers": "Answers that a reward model scored.",
    "scored_tokens": "Tokens of them, with those of their conversations.",
}
_REWARD_STATES = {"answers_waiting": "Answers that wait for their scores."}

Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)

#: The content type of the text.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Of one server."""

    def __init__(self, lanes: Mapping[str, Lane], rewards: Mapping[str, RewardLane]):
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each was first counted is of no use
        self._registry = CollectorRegistry(auto_describe=True)
        registry = self._registry
        self.requests = Counter(
            "bc2_requests",
            "Requests that were answered.",
            ("model", "route", "status"),
            registry=registry,
        )
        self.running = Gauge(
            "bc2_requests_running", "Requests being answered.", ("route",), registry=registry
        )
        self.cancelled = Counter(
            "bc2_cancelled", "Requests whose client hung up.", registry=registry
        )
        self.first_token = Histogram(
            "bc2_time_to_first_token_seconds", "From a request to its first token, streamed.",
            buckets=_LONG, registry=registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "bc2_time_between_tokens_seconds", "From a token to the next, streamed.",
            buckets=_SHORT, registry=registry,
        )  # fmt: skip
        self.whole = Histogram(
            "bc2_request_seconds", "From a request to the end of its answer.", ("route",),
            buckets=_LONG, registry=registry,
        )  # fmt: skip
        self._registry.register(_Engines(lanes))
        self._registry.register(_RewardModels(rewards))

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """The counters of the engines."""

    def __init__(self, lanes: Mapping[str, Lane]):
        self._lanes = lanes

    def collect(self) -> Iterable[Metric]:
        for name, help in _COUNTS.items():
            yield self._added(CounterMetricFamily(f"bc2_{name}", help, labels=("model",)), name)
        for name, help in _STATES.items():
            yield self._added(GaugeMetricFamily(f"bc2_{name}", help, labels=("model",)), name)

    def _added(self, family: Family, name: str) -> Family:
        """A family with its value for each model."""
        for model, lane in self._lanes.items():
            pool, stats = lane.engine.memory.pool, lane.engine.stats
            states = {
                "cache_blocks": pool.blocks,
                "cache_blocks_used": pool.blocks - pool.available,
                "requests_waiting": lane.waiting,
            }
            family.add_metric((model,), states[name] if name in states else getattr(stats, name))
        return family


class _RewardModels(Collector):
    """The counters of the reward models; nothing where there are none."""

    def __init__(self, lanes: Mapping[str, RewardLane]):
        self._lanes = lanes

    def collect(self) -> Iterable[Metric]:
        if not self._lanes:
            return
        for name, help in _REWARD_COUNTS.items():
            yield self._added(CounterMetricFamily(f"bc2_{name}", help, labels=("model",)), name)
        for name, help in _REWARD_STATES.items():
            yield self._added(GaugeMetricFamily(f"bc2_{name}", help, labels=("model",)), name)

    def _added(self, family: Family, name: str) -> Family:
        for model, lane in self._lanes.items():
            values = {
                "scored_answers": lane.answers,
                "scored_tokens": lane.tokens,
                "answers_waiting": lane.waiting,
            }
            family.add_metric((model,), values[name])
        return family
