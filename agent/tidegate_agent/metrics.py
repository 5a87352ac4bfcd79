"""Prometheus metrics: distribution's names for the proxy, and Tidegate's own (DESIGN, section 10).

Everything but the request histogram is derived from `Activity` and the gauges at the moment of a scrape.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tidegate_agent.activity import CONTENT_KINDS, Activity
from tidegate_agent.clients import Reason
from tidegate_proxy.answer import Cache
from tidegate_proxy.http_server import Served
from tidegate_proxy.interceptor import OUTCOMES as CONNECTION_OUTCOMES

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What is true at the moment of a scrape."""

    steering_backend: str
    steering_active: bool
    cache_bytes: int
    upstream_up: bool


class Metrics:
    """The scrape answer, and the histogram that each request feeds."""

    def __init__(self, activity: Activity, gauges: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_ActivityCollector(activity, gauges))
        self._request_seconds = Histogram(
            "tidegate_request_seconds",
            "Time from a request's head to the last byte of its answer.",
            ["cache"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._seconds_by_cache = {cache: self._request_seconds.labels(cache=cache.value) for cache in Cache}

    def served(self, served: Served) -> None:
        """A request was answered."""
        self._seconds_by_cache[served.cache].observe(served.seconds)

    def exposition(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self._registry)


class _ActivityCollector(Collector):
    def __init__(self, activity: Activity, gauges: Callable[[], Gauges]) -> None:
        self._activity = activity
        self._gauges = gauges

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
            "tidegate_connections", "Connections that reached the agent.", labels=["outcome", "reason"]
        )
        known = (*CONNECTION_OUTCOMES, *(("spliced", reason.value) for reason in Reason))
        for outcome, reason in known:
            connections.add_metric([outcome, reason], activity.connections[(outcome, reason)])
        yield connections
        yield _by_label("tidegate_dns_queries", "Queries to the responder.", "outcome", activity.dns_queries)
        yield _by_label("tidegate_bypassed", "Requests passed through uncached.", "cause", activity.bypassed)
        yield _by_label("tidegate_steering_errors", "Failures to steer.", "cause", activity.steering_errors)
        yield CounterMetricFamily(
            "tidegate_saved_bytes", "Bytes that upstreams were not asked for.", value=activity.saved_bytes
        )
        active = GaugeMetricFamily(
            "tidegate_steering_active", "1 while registry connections are redirected.", labels=["backend"]
        )
        active.add_metric([gauges.steering_backend], float(gauges.steering_active))
        yield active
        yield GaugeMetricFamily("tidegate_cache_bytes", "Bytes of verified blobs.", value=gauges.cache_bytes)
        up = GaugeMetricFamily(
            "tidegate_upstream_up", "0 after an upstream could not be reached.", labels=["kind", "url"]
        )
        up.add_metric(["direct", ""], float(gauges.upstream_up))
        yield up


def _by_label(name: str, documentation: str, label: str, totals: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, total in sorted(totals.items()):
        family.add_metric([value], total)
    return family
