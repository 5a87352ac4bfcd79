"""Which token service may be told a password: the registry's kin, and nobody a tampered registry may name."""

import pytest

from tidegate_proxy.oci.challenge import Challenge
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.realm import is_relative, may_have_password, token_service


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("registry-1.docker.io", "https://auth.docker.io/token"),
        ("quay.io", "https://quay.io/v2/auth"),
        ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
        ("registry.example.co.uk", "https://gitlab.example.co.uk/jwt/auth"),
        ("eu.gcr.io", "https://eu.gcr.io/v2/token"),
        ("mine.azurecr.io", "https://mine.azurecr.io/oauth2/token"),
        ("registry.example.com", "https://auth.registry.example.com:8443/token"),
        ("10.0.0.5", "https://10.0.0.5/token"),
    ],
)
def test_a_password_goes_to_the_registry_and_its_kin(registry: str, realm: str) -> None:
    """C17: Hub, quay, GitLab's separate host, GCR, ACR, and what people run themselves."""
    site = Site(registry="r", host=registry)
    found = token_service(site, Challenge("Bearer", {"realm": realm}))

    assert found is not None
    assert may_have_password(site, found)


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("registry-1.docker.io", "https://auth.docker.io.evil.example/token"),
        ("registry-1.docker.io", "https://evil.example/token"),
        ("registry-1.docker.io", "https://docker.io@evil.example/token"),
        ("registry-1.docker.io", "http://auth.docker.io/token"),
        ("registry-1.docker.io", "http://registry-1.docker.io/token"),
        ("quay.io", "https://evil.io/token"),
        ("registry.co.uk", "https://evil.co.uk/token"),
        ("mine.azurecr.io", "https://evil.azurecr.io/token"),
        ("us-docker.pkg.dev", "https://evil.pkg.dev/token"),
        ("1.dkr.ecr.eu-west-1.amazonaws.com", "https://2.dkr.ecr.eu-west-1.amazonaws.com/token"),
        ("10.0.0.5", "https://10.0.0.6/token"),
        ("registry.corp", "https://evil.corp/token"),
        ("registry.example.com", "https://auth.example.com\r\nX: y/token"),
        ("registry.example.com", "https:///token"),
        ("registry.example.com", "https://auth.example.com:port/token"),
    ],
)
def test_a_tampered_registry_cannot_name_who_gets_the_password(registry: str, realm: str) -> None:
    """C17, I6: a realm is as trustworthy as whoever sent it."""
    site = Site(registry="r", host=registry)
    found = token_service(site, Challenge("Bearer", {"realm": realm}))

    assert found is None or not may_have_password(site, found)


def test_the_configuration_may_name_a_token_service_that_is_no_kin() -> None:
    """C17: `token_host`, over TLS only."""
    site = Site(registry="r", host="registry.example.com")
    for scheme, allowed in (("https", True), ("http", False)):
        found = token_service(site, Challenge("Bearer", {"realm": f"{scheme}://sso.example.org/t"}))

        assert (found is not None and may_have_password(site, found, named="sso.example.org")) is allowed


def test_a_plain_registry_gets_its_own_password_and_nobody_else_in_the_clear() -> None:
    """C17, C24: where the operator said `plain_http`, the registry's own host, no other."""
    site = Site(registry="r", host="registry.example.com", port=5000, scheme="http")
    own = token_service(site, Challenge("Bearer", {"realm": "http://registry.example.com:5001/t"}))
    other = token_service(site, Challenge("Bearer", {"realm": "http://auth.example.com/t"}))

    assert own is not None
    assert may_have_password(site, own)
    assert other is not None
    assert not may_have_password(site, other)


def test_the_request_for_a_token_keeps_the_realms_query() -> None:
    """C17: the token specification's `service` and `scope`, behind what the realm has already."""
    site = Site(registry="r", host="r.example")
    found = token_service(site, Challenge("Bearer", {"realm": "https://r.example/t?a=b", "service": "s e"}))

    assert found is not None
    assert found.target("team/app") == "/t?a=b&scope=repository%3Ateam%2Fapp%3Apull&service=s+e"


def test_kinship_is_mutual_and_never_of_single_labels() -> None:
    """C17."""
    assert is_relative("gitlab.com", "registry.gitlab.com")
    assert not is_relative("registry.corp", "corp")
    assert not is_relative("example.com", "badexample.com")
