"""docker-registry-proxy's AUTH_REGISTRIES, as its users write it."""

import pytest

from tidegate_core.errors import UsageError
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.auth_registries import AuthRegistry, parse_auth_registries
from tidegate_proxy.upstreams.credentials import Credentials, Share

HUB = Site(registry="docker.io", host="registry-1.docker.io")


def as_text(entries: tuple[AuthRegistry, ...]) -> list[str]:
    return [f"{entry.host} {entry.username} {entry.password.reveal()}" for entry in entries]


@pytest.mark.parametrize(
    ("text", "delimiters", "read"),
    [
        ("", (), []),
        ("auth.docker.io:user:pw", (), ["auth.docker.io user pw"]),
        (" quay.io:robot+x:a  gcr.io:_json_key:b ", (), ["quay.io robot+x a", "gcr.io _json_key b"]),
        ("quay.io:u:p:w:with:colons", (), ["quay.io u p:w:with:colons"]),
        ('gcr.io:::_json_key:::{\n "a": "b c"\n}', (";;;", ":::"), ['gcr.io _json_key {\n "a": "b c"\n}']),
        ("quay.io|u|p q;ghcr.io|v|r", (";", "|"), ["quay.io u p q", "ghcr.io v r"]),
        ("Quay.IO:u:p", (), ["quay.io u p"]),
    ],
)
def test_entries_are_host_user_and_password(text: str, delimiters: tuple[str, ...], read: list[str]) -> None:
    """C17, T1: both delimiters, and a password that holds the inner one."""
    assert as_text(parse_auth_registries(text, *delimiters)) == read


@pytest.mark.parametrize(
    ("text", "delimiters", "told"),
    [
        ("quay.io:hunter2", (), "entry 1 is not host, user and password"),
        ("a.io:u:p hunter2", (), "entry 2 is not"),
        ("quay.io::hunter2", (), "entry 1 is not"),
        ("hun ter2:u:p", (), "entry 1 is not"),
        ("https://hunter2:u:p", (), "entry 1 does not begin with a host"),
        ("quay.io|u:hunter2|p", (" ", "|"), "colon in its user"),
        ("a.io:u:p a.io:u:hunter2", (), "entry 2 is for the same host"),
        ("a.io:u:p", (" ", " "), "must differ"),
    ],
)
def test_a_wrong_entry_is_told_by_its_number_alone(text: str, delimiters: tuple[str, ...], told: str) -> None:
    """C17, O4: any part may be the password when a delimiter is wrong."""
    with pytest.raises(UsageError, match=told) as caught:
        parse_auth_registries(text, *delimiters)

    assert "hunter2" not in str(caught.value)
    assert "hun" not in str(caught.value)


def test_a_password_is_in_no_representation() -> None:
    """O4."""
    (entry,) = parse_auth_registries("quay.io:u:hunter2")
    login = entry.login()

    assert "hunter2" not in repr(entry) + repr(login) + repr(entry.password) + f"{entry.password}"


@pytest.mark.parametrize("host", ["auth.docker.io", "registry-1.docker.io", "docker.io"])
def test_docker_hub_is_known_by_its_token_service_and_its_registry(host: str) -> None:
    """C17, T1: `auth.docker.io` is what docker-registry-proxy's users write."""
    (entry,) = parse_auth_registries(f"{host}:u:p")
    credentials = Credentials([entry.login(Share.NODE)], clock=lambda: 0.0)

    assert credentials.shared(HUB) is credentials.all[0]
    assert credentials.of(Site(registry="quay.io", host="quay.io")) is None
