"""The mirror protocol's `ns`."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.central.namespace import ByNamespace, without_namespace
from tidegate_proxy.http.addressing import Addressed
from tidegate_proxy.registry.answer import Answer
from tidegate_proxy.site import Registries, Registry

REGISTRIES = Registries(
    [
        Registry(name="docker.io", hosts=("registry-1.docker.io", "index.docker.io")),
        Registry(name="gcr.io", hosts=("gcr.io", "*.gcr.io")),
        Registry(name="local", hosts=("registry.local:5000",), plain_http=True),
    ]
)
PATH = "/v2/a/b/manifests/1"


@pytest.mark.parametrize(
    ("target", "origin", "asked"),
    [
        (f"{PATH}?ns=docker.io", "https://registry-1.docker.io", PATH),
        (f"{PATH}?ns=DOCKER.IO.", "https://registry-1.docker.io", PATH),
        (PATH, "https://registry-1.docker.io", PATH),
        (f"{PATH}?ns=eu.gcr.io", "https://eu.gcr.io", PATH),
        (
            f"{PATH}?n=5&ns=registry.local%3A5000&last=%2F",
            "http://registry.local:5000",
            f"{PATH}?n=5&last=%2F",
        ),
    ],
)
def test_ns_names_the_registry_and_is_taken_off(target: str, origin: str, asked: str) -> None:
    """T3: nothing of it reaches a registry, and the rest stays as it was written; none means Docker Hub."""
    found = ByNamespace(REGISTRIES).of("whatever:5443", target)

    assert isinstance(found, Addressed)
    assert (found.site.origin, found.target) == (origin, asked)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("ns=example.org", 404, "NAME_UNKNOWN"),
        ("ns=", 404, "NAME_UNKNOWN"),
        ("ns=a.b.gcr.io", 404, "NAME_UNKNOWN"),
        ("ns=gcr.io%3Ax", 404, "NAME_UNKNOWN"),
        ("ns=docker.io&ns=gcr.io", 400, "NAME_INVALID"),
    ],
)
def test_what_is_no_registry_is_refused_in_the_specifications_words(
    query: str, status: int, code: str
) -> None:
    """T3: never asked for as if it were another one."""
    refused = ByNamespace(REGISTRIES).of("", f"{PATH}?{query}")

    assert isinstance(refused, Answer)
    assert isinstance(refused.body, bytes)
    assert (refused.status, json.loads(refused.body)["errors"][0]["code"]) == (status, code)


PART = st.from_regex(r"[a-z]{1,3}(=[a-z%&]{0,3})?", fullmatch=True).filter(
    lambda part: "&" not in part and not part.startswith("ns")
)


@given(st.lists(PART, max_size=4), st.integers(0, 4), st.text(min_size=1, max_size=8))
def test_taking_ns_off_leaves_every_other_parameter(parts: list[str], at: int, name: str) -> None:
    """T3: wherever it stands among them."""
    with_it = [*parts[:at], f"ns={quote(name, safe='')}", *parts[at:]]
    rest = f"/p?{'&'.join(parts)}" if parts else "/p"

    assert without_namespace(f"/p?{'&'.join(with_it)}") == ([name], rest)
    assert without_namespace(rest) == ([], rest)
