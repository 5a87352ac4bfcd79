"""The scrape answer counts what was served up to now, and its histogram is prometheus-client's."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from tidegate_agent.activity import Activity
from tidegate_agent.metrics import BUCKETS_S, Gauges, Metrics, RequestSeconds
from tidegate_proxy.http.served import Served, Tally
from tidegate_proxy.registry.answer import Cache, Kind
from tidegate_proxy.site import Site

GAUGES = Gauges(
    steering_backend="nft",
    steering_active=True,
    cache_bytes=0,
    upstream_up={("direct", ""): True},
    upstream_requests={("direct", "2xx"): 0},
)


def served(cache: Cache) -> Served:
    return Served(
        site=Site(registry="docker.io", host="registry-1.docker.io"),
        method="GET",
        path="/",
        status=200,
        cache=cache,
        kind=Kind.MANIFEST,
        sent_bytes=10,
        received_bytes=0,
        cause=None,
    )


KINDS = {cache: served(cache) for cache in Cache}


@given(
    st.lists(
        st.tuples(st.sampled_from(Cache), st.one_of(st.floats(0, 400), st.sampled_from(BUCKETS_S))),
        max_size=40,
    )
)
def test_the_histogram_is_the_one_that_prometheus_client_makes(
    requests: Sequence[tuple[Cache, float]],
) -> None:
    """O1: the same text for the same requests, but for when it was created and the last digits of a sum."""
    theirs = Histogram(
        "tidegate_request_seconds",
        "Time from a request's head to the last byte of its answer.",
        ["cache"],
        buckets=BUCKETS_S,
        registry=(registry := CollectorRegistry()),
    )
    for cache in Cache:
        theirs.labels(cache=cache.value)
    for cache, seconds in requests:
        theirs.labels(cache=cache.value).observe(seconds)
    ours = RequestSeconds()
    ours.served([(KINDS[cache], 0.0, seconds) for cache, seconds in requests])
    other = CollectorRegistry()
    other.register(ours)

    assert samples(generate_latest(other)) == samples(generate_latest(registry))


def samples(text: bytes) -> list[tuple[str, str]]:
    found = []
    for line in text.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if "_created{" not in name:
            found.append((name, f"{float(value):.6g}" if "_sum{" in name else value))
    return found


async def test_a_scrape_is_never_behind() -> None:
    """O1: what was served a moment ago is counted."""
    activity, seconds = Activity(), RequestSeconds()
    tally = Tally([activity.served, seconds.served])
    metrics = Metrics(activity, seconds, lambda: GAUGES, settle=tally.tell)
    for _ in range(3):
        tally.add(KINDS[Cache.HIT], 0.0001)
    text = metrics.exposition()

    assert b'registry_proxy_hits_total{type="manifest"} 3.0\n' in text
    assert b'registry_proxy_pushed_bytes_total{type="manifest"} 30.0\n' in text
    assert b'tidegate_request_seconds_count{cache="hit"} 3.0\n' in text
    assert b"tidegate_saved_bytes_total 30.0\n" in text
