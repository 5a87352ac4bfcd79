"""Registries and their sites: by host, and by the namespace that a mirror is told."""

import pytest

from tidegate_proxy.site import Registries, Registry

REGISTRIES = Registries(
    [
        Registry(name="docker.io", hosts=("registry-1.docker.io", "index.docker.io")),
        Registry(name="gcr.io", hosts=("gcr.io", "*.gcr.io")),
        Registry(name="lab", hosts=("registry.lab:5000",)),
        Registry(name="plain", hosts=("plain.lab",), plain_http=True),
    ]
)


@pytest.mark.parametrize(
    ("host", "port", "namespace", "back"),
    [
        ("registry-1.docker.io", 443, "docker.io", "registry-1.docker.io"),
        ("index.docker.io", 443, "docker.io", "registry-1.docker.io"),
        ("eu.gcr.io", 443, "eu.gcr.io", "eu.gcr.io"),
        ("registry.lab", 5000, "registry.lab:5000", "registry.lab:5000"),
        ("plain.lab", 80, "plain.lab", "plain.lab"),
    ],
)
def test_a_namespace_leads_back_to_a_site_of_its_registry(
    host: str, port: int, namespace: str, back: str
) -> None:
    """T3: containerd's `ns`, where Docker Hub has one name for all of its hosts."""
    site = REGISTRIES.site(host, port)
    assert site is not None
    assert site.namespace == namespace

    found = REGISTRIES.by_namespace(namespace)
    assert found is not None
    assert (found.registry, found.authority, found.scheme) == (site.registry, back, site.scheme)


@pytest.mark.parametrize("namespace", ["", "quay.io", "a.b.gcr.io", "registry.lab", "gcr.io:99", "gcr.io:x"])
def test_a_namespace_of_no_registry_has_no_site(namespace: str) -> None:
    """T3, T8: central fetches from configured registries only."""
    assert REGISTRIES.by_namespace(namespace) is None
