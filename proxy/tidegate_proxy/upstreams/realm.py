"""Which token service may be told a password: a registry names it, and a registry can be tampered with.

A challenge's realm (RFC 6750 section 3; distribution, docs/spec/auth/token.md) is as trustworthy as whoever
sent it. A token for nobody may be asked for anywhere; a password goes only to a host that belongs to the
registry by name (decision 0019), or that the configuration names. Pure.
"""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlencode, urlsplit

from tidegate_proxy.oci.challenge import Challenge
from tidegate_proxy.site import Site

# Domains below which strangers get names of their own: two of them are no relatives.
_OF_STRANGERS = frozenset(
    {
        "amazonaws.com",
        "appspot.com",
        "azurecr.io",
        "azurewebsites.net",
        "cloudapp.net",
        "cloudfront.net",
        "fly.dev",
        "gcr.io",
        "github.io",
        "gitlab.io",
        "herokuapp.com",
        "jfrog.io",
        "netlify.app",
        "ngrok.io",
        "ocir.io",
        "onrender.com",
        "pages.dev",
        "pkg.dev",
        "run.app",
        "vercel.app",
        "workers.dev",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenService:
    """Where tokens for a registry are to be had, and the fixed part of the request for one."""

    site: Site
    path: str
    query: str
    service: str

    def target(self, repository: str) -> str:
        """Path and query of the request for a token to pull from the repository; from none, if empty."""
        asked = {"scope": f"repository:{repository}:pull"} if repository else {}
        if self.service:
            asked["service"] = self.service
        query = "&".join(part for part in (self.query, urlencode(asked)) if part)
        return f"{self.path}?{query}" if query else self.path


def token_service(site: Site, challenge: Challenge) -> TokenService | None:
    """The token service that a Bearer challenge of the site names; None for what cannot be one.

    Its scheme is https, or the site's own.
    """
    try:
        realm = urlsplit(challenge.parameters.get("realm", ""))
        host, port = (realm.hostname or "").rstrip("."), realm.port
    except ValueError:
        return None
    if not _is_host(host) or realm.scheme not in ("https", site.scheme) or "@" in realm.netloc:
        return None
    if not (realm.path + realm.query).isprintable() or " " in realm.path + realm.query:
        return None
    return TokenService(
        site=Site(
            registry=site.registry,
            host=host,
            port=port or (443 if realm.scheme == "https" else 80),
            scheme="https" if realm.scheme == "https" else "http",
            ca=site.ca,
            tls=site.tls,
        ),
        path=realm.path or "/",
        query=realm.query,
        service=challenge.parameters.get("service", ""),
    )


def may_have_password(site: Site, service: TokenService, *, named: str = "") -> bool:
    """Whether a password for `site` may go to this token service; `named` is the configuration's word for it.

    Without TLS only where the registry itself has none, and then only to the registry's own host.
    """
    host = service.site.host
    if service.site.scheme != "https":
        return service.site.scheme == site.scheme and host == site.host
    return host in (site.host, named) or is_relative(site.host, host)


def is_relative(registry: str, other: str) -> bool:
    """Whether two host names belong together: one lies below the other, or both directly below one domain
    that is not open to strangers."""
    if _is_address(registry) or _is_address(other):
        return registry == other
    if _lies_below(registry, other) or _lies_below(other, registry):
        return True
    _, _, domain = registry.partition(".")
    return _is_of_one_owner(domain) and other.partition(".")[2] == domain


def _lies_below(name: str, domain: str) -> bool:
    return name.endswith(f".{domain}") and _is_of_one_owner(domain)


def _is_of_one_owner(domain: str) -> bool:
    """By rule of thumb, on the safe side: `co.uk` is not, nor are those known to be let to strangers."""
    labels = domain.split(".")
    if len(labels) < 2:
        return False
    if len(labels) == 2 and len(labels[1]) == 2 and len(labels[0]) <= 3:
        return False
    return not any(domain == strangers or domain.endswith(f".{strangers}") for strangers in _OF_STRANGERS)


def _is_host(host: str) -> bool:
    return bool(host) and len(host) <= 253 and host.isascii() and all(c.isalnum() or c in ".-_" for c in host)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
