"""Prometheus metrics: distribution's names for the proxy, and Tidegate's own (DESIGN, section 10).

Everything is derived from `Activity`, the request histogram and the gauges at the moment of a scrape.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tidegate_agent.activity import CONTENT_KINDS, Activity
from tidegate_agent.clients import Reason
from tidegate_proxy.http.served import Moment, Served
from tidegate_proxy.interception.interceptor import OUTCOMES as CONNECTION_OUTCOMES
from tidegate_proxy.registry.answer import Cache

AGENT_OUTCOMES = (*CONNECTION_OUTCOMES, *(("spliced", reason.value) for reason in Reason))
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What is true at the moment of a scrape."""

    steering_backend: str | None
    """None where nothing is steered, and no names are resolved for others: central."""
    steering_active: bool
    probe_passes: bool = False
    cache_bytes: int
    cache_evicted_bytes: int = 0
    upstream_up: Mapping[tuple[str, str], bool]
    """By kind and URL."""
    upstream_requests: Mapping[tuple[str, str], int]
    """By kind and status."""
    ratelimit_remaining: Mapping[str, int] = field(default_factory=dict)
    """By registry, of those that told."""


class RequestSeconds(Collector):
    """The request histogram. prometheus-client's own takes one observation at a time, for 3 us each."""

    def __init__(self, *, created: float | None = None) -> None:
        """`created` is in seconds since the epoch."""
        self._created = time.time() if created is None else created
        self._counts = {cache: [0] * (len(BUCKETS_S) + 1) for cache in Cache}
        self._sums = dict.fromkeys(Cache, 0.0)

    def served(self, moments: Sequence[Moment]) -> None:
        """Requests were answered."""
        by_cache: dict[Cache, list[float]] = {}
        of: dict[Served, list[float]] = {}
        for served, _, seconds in moments:
            if served not in of:
                of[served] = by_cache.setdefault(served.cache, [])
            of[served].append(seconds)
        for cache, took in by_cache.items():
            counts = self._counts[cache]
            self._sums[cache] += sum(took)
            for seconds in took:
                counts[bisect_left(BUCKETS_S, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        name = "tidegate_request_seconds"
        family = HistogramMetricFamily(
            name, "Time from a request's head to the last byte of its answer.", labels=["cache"]
        )
        bounds = [*(str(float(bound)) for bound in BUCKETS_S), "+Inf"]
        for cache, counts in self._counts.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric([cache.value], buckets=buckets, sum_value=self._sums[cache])
            family.add_sample(f"{name}_created", {"cache": cache.value}, self._created)
        yield family


class Metrics:
    """The scrape answer."""

    def __init__(
        self,
        activity: Activity,
        seconds: RequestSeconds,
        gauges: Callable[[], Gauges],
        *,
        settle: Callable[[], None],
        connection_outcomes: Sequence[tuple[str, str]] = AGENT_OUTCOMES,
    ) -> None:
        """`settle` makes the first two count what was served up to now."""
        self._settle = settle
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_ActivityCollector(activity, gauges, connection_outcomes))
        self._registry.register(seconds)

    def exposition(self) -> bytes:
        """The text format, version 0.0.4."""
        self._settle()
        return generate_latest(self._registry)


class _ActivityCollector(Collector):
    def __init__(
        self,
        activity: Activity,
        gauges: Callable[[], Gauges],
        connection_outcomes: Sequence[tuple[str, str]],
    ) -> None:
        self._activity = activity
        self._gauges = gauges
        self._connection_outcomes = connection_outcomes

    def collect(self) -> Iterator[Metric]:
        activity, gauges = self._activity, self._gauges()
        for name, documentation, totals in (
            ("registry_proxy_requests", "Requests for content.", activity.requests),
            ("registry_proxy_hits", "Requests answered from the cache.", activity.hits),
            ("registry_proxy_misses", "Requests that were fetched.", activity.misses),
            ("registry_proxy_pulled_bytes", "Bytes fetched from upstreams.", activity.pulled_bytes),
            ("registry_proxy_pushed_bytes", "Bytes sent to clients.", activity.pushed_bytes),
        ):
            family = CounterMetricFamily(name, documentation, labels=["type"])
            for kind in CONTENT_KINDS:
                family.add_metric([kind.value], totals[kind])
            yield family
        connections = CounterMetricFamily(
            "tidegate_connections", "Connections that were accepted.", labels=["outcome", "reason"]
        )
        for outcome, reason in self._connection_outcomes:
            connections.add_metric([outcome, reason], activity.connections[(outcome, reason)])
        yield connections
        yield _by_label(
            "tidegate_bypassed",
            "Requests and connections to registries past the cache.",
            "cause",
            activity.bypassed,
        )
        yield _by_label(
            "tidegate_healed", "What fetches got over, unseen by clients.", "cause", activity.healed
        )
        yield CounterMetricFamily(
            "tidegate_saved_bytes", "Bytes that upstreams were not asked for.", value=activity.saved_bytes
        )
        if gauges.steering_backend is not None:
            yield from _steering(activity, gauges.steering_backend, gauges)
        yield GaugeMetricFamily("tidegate_cache_bytes", "Bytes of verified blobs.", value=gauges.cache_bytes)
        yield CounterMetricFamily(
            "tidegate_cache_evicted_bytes",
            "Bytes of blobs that were evicted.",
            value=gauges.cache_evicted_bytes,
        )
        up = GaugeMetricFamily(
            "tidegate_upstream_up", "0 after an upstream could not be reached.", labels=["kind", "url"]
        )
        for labels, is_up in gauges.upstream_up.items():
            up.add_metric(labels, float(is_up))
        yield up
        asked = CounterMetricFamily(
            "tidegate_upstream_requests", "Requests to upstreams.", labels=["kind", "status"]
        )
        for labels, total in sorted(gauges.upstream_requests.items()):
            asked.add_metric(labels, total)
        yield asked
        remaining = GaugeMetricFamily(
            "tidegate_ratelimit_remaining",
            "What a registry said is left of its rate limit, in the name that has the least.",
            labels=["registry"],
        )
        for registry, left in sorted(gauges.ratelimit_remaining.items()):
            remaining.add_metric([registry], left)
        yield remaining


def _steering(activity: Activity, backend: str, gauges: Gauges) -> Iterator[Metric]:
    yield _by_label("tidegate_dns_queries", "Queries to the responder.", "outcome", activity.dns_queries)
    yield _by_label("tidegate_steering_errors", "Failures to steer.", "cause", activity.steering_errors)
    active = GaugeMetricFamily(
        "tidegate_steering_active", "1 while registry connections are redirected.", labels=["backend"]
    )
    active.add_metric([backend], float(gauges.steering_active))
    yield active
    yield GaugeMetricFamily(
        "tidegate_probe_success", "1 after a probe that came through.", value=float(gauges.probe_passes)
    )
    yield CounterMetricFamily(
        "tidegate_steering_restored",
        "Times that the rules were found gone and put in anew.",
        value=activity.steering_restored,
    )


def _by_label(name: str, documentation: str, label: str, totals: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, total in sorted(totals.items()):
        family.add_metric([value], total)
    return family
