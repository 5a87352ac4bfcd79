"""One JSON line per request, in the shape of all other lines."""

import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_agent.request_log import RequestLog
from tidegate_proxy.http.served import Moment, Served
from tidegate_proxy.registry.answer import Cache, Kind
from tidegate_proxy.site import Site


def served(path: str = "/v2/", cause: BaseException | None = None) -> Served:
    return Served(
        site=Site(registry="docker.io", host="registry-1.docker.io"),
        method="GET",
        path=path,
        status=200,
        cache=Cache.HIT,
        kind=Kind.MANIFEST,
        sent_bytes=7,
        received_bytes=0,
        cause=cause,
    )


def lines(*moments: Moment) -> list[bytes]:
    stream = io.TextIOWrapper(io.BytesIO())
    RequestLog(stream).served(moments)
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().splitlines()


def test_a_line_has_these_fields_in_this_order() -> None:
    """O4: what others chart and grep for."""
    (line,) = lines((served(), 1.25, 0.0123456))
    assert line == (
        b'{"registry":"docker.io","method":"GET","path":"/v2/","status":200,"cache":"hit","bytes":7,'
        b'"ms":12.3,"event":"served","level":"info","timestamp":"1970-01-01T00:00:01.250000Z"}'
    )


def test_what_went_wrong_is_a_warning_with_its_cause() -> None:
    """O4."""
    (line,) = lines((served(cause=OSError('cut "here"')), 1.25, 0.5))
    assert line.endswith(
        b'"ms":500.0,"cause":"cut \\"here\\"","event":"served","level":"warning",'
        b'"timestamp":"1970-01-01T00:00:01.250000Z"}'
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 4e9), st.floats(0, 1e6)),
        min_size=1,
        max_size=20,
    )
)
def test_each_request_of_a_batch_has_its_own_time_and_duration(
    requests: list[tuple[int, float, float]],
) -> None:
    """O4: in the order in which they ended, however many are alike."""
    kinds = [served("/0"), served("/1", OSError("no")), served("/2")]
    written = [json.loads(line) for line in lines(*((kinds[n], ended, took) for n, ended, took in requests))]

    assert [line["path"] for line in written] == [f"/{n}" for n, _, _ in requests]
    assert [line["ms"] for line in written] == [round(took * 1000, 1) for _, _, took in requests]
    for line, (_, ended, _) in zip(written, requests, strict=True):
        assert (
            abs(
                (
                    datetime.fromisoformat(line["timestamp"]) - datetime.fromtimestamp(ended, UTC)
                ).total_seconds()
            )
            < 2e-6
        )


@pytest.mark.parametrize("path", ["/\udc80", '/"\\', "/\x7f\u2028"])
def test_no_path_costs_others_their_line(path: str) -> None:
    """O4: a client may send any byte."""
    written = lines((served(), 1.0, 0.0), (served(path), 1.0, 0.0), (served(), 1.0, 0.0))
    assert [json.loads(line)["event"] for line in written] == ["served"] * 3
