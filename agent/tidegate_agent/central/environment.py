"""docker-registry-proxy's environment variables in our words (FEATURES T1). Pure.

What has no equivalent is named in a warning, and so is what looks like one of them and is none. Values are
never repeated where they may hold a password.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from tidegate_agent.central import manifest_cache
from tidegate_agent.config import RegistryConfig, TagTier
from tidegate_agent.registry_host import RegistryHost
from tidegate_core.errors import UsageError
from tidegate_proxy.upstreams.auth_registries import AuthRegistry, parse_auth_registries

SECRET = "AUTH_REGISTRIES"
SECRET_FILE = "AUTH_REGISTRIES_FILE"
_TIMEOUTS = "because the tier has time-outs of its own"
_CA = "because the tier makes its own CA in state_dir; clients get it from /ca.crt"
_INEFFECTIVE = {
    "ALLOW_OWN_AUTH": "because a client's own login always counts",
    "ALLOW_PUSH_WITH_OWN_AUTH": "because pushes are always made with the client's own login; see ALLOW_PUSH",
    "CA_KEY_FILE": _CA,
    "CA_CRT_FILE": _CA,
    "PROXY_REQUEST_BUFFERING": "because pushes are never buffered",
    "DEBUG": "because the log tells every request",
    "DEBUG_HUB": "because the log tells every request",
    "DEBUG_NGINX": "because there is no nginx",
    **{
        f"{prefix}_TIMEOUT": _TIMEOUTS
        for prefix in (
            "SEND",
            "CLIENT_BODY",
            "CLIENT_HEADER",
            "KEEPALIVE",
            "PROXY_READ",
            "PROXY_CONNECT",
            "PROXY_SEND",
            "PROXY_CONNECT_READ",
            "PROXY_CONNECT_CONNECT",
            "PROXY_CONNECT_SEND",
        )
    },
}
_TRANSLATED = (
    "REGISTRIES",
    SECRET,
    SECRET_FILE,
    "AUTH_REGISTRIES_DELIMITER",
    "AUTH_REGISTRY_DELIMITER",
    "CACHE_MAX_SIZE",
    "ALLOW_PUSH",
    "VERIFY_SSL",
    "DISABLE_IPV6",
    *manifest_cache.VARIABLES,
)
KNOWN = (*_TRANSLATED, *_INEFFECTIVE)
_FAMILIES = ("AUTH_REGISTR", "MANIFEST_CACHE_", "CACHE_MAX_", "ALLOW_PUSH", "REGISTRIES")
_FALSE = ("false", "0", "no", "off")
_UNITS = {"": "", "K": "KiB", "M": "MiB", "G": "GiB", "T": "TiB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """What the variables mean: twins of our own keys, registries, logins, and words for the operator."""

    twins: Mapping[str, str]
    registries: tuple[RegistryConfig, ...]
    logins: tuple[AuthRegistry, ...]
    tags: tuple[TagTier, ...]
    warnings: tuple[str, ...]


def translate(environment: Mapping[str, str]) -> Translation:
    """Every variable of docker-registry-proxy's that is set and not empty; UsageError for a malformed one.

    Our own variables win over twins: the caller lays them over these. The content of AUTH_REGISTRIES_FILE is
    the caller's to read into AUTH_REGISTRIES.
    """
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    twins: dict[str, str] = {}
    warnings = list(_warnings(given))
    if "ALLOW_PUSH" in given:
        twins["TIDEGATE_PUSH__ALLOW"] = _truth("ALLOW_PUSH", given["ALLOW_PUSH"])
    if "DISABLE_IPV6" in given and _truth("DISABLE_IPV6", given["DISABLE_IPV6"]) == "true":
        twins["TIDEGATE_IPV6"] = "false"
    if "VERIFY_SSL" in given and _truth("VERIFY_SSL", given["VERIFY_SSL"]) == "false":
        warnings.append(
            "VERIFY_SSL=false has no effect, because registries are always verified: give the CA of one that "
            "the system does not trust as ca in its [[registry]]"
        )
    if "CACHE_MAX_SIZE" in given:
        twins["TIDEGATE_CACHE__MAX_SIZE"] = _size(given["CACHE_MAX_SIZE"])
    logins = parse_auth_registries(
        given.get(SECRET, ""),
        environment.get("AUTH_REGISTRIES_DELIMITER") or " ",
        environment.get("AUTH_REGISTRY_DELIMITER") or ":",
    )
    return Translation(
        twins=twins,
        registries=tuple(_registries(given.get("REGISTRIES", "").split())),
        logins=logins,
        tags=tuple(_tags(given, environment)),
        warnings=tuple(warnings),
    )


def _tags(given: Mapping[str, str], environment: Mapping[str, str]) -> Iterable[TagTier]:
    """An empty pattern says something, so what was given and is empty counts here."""
    switch = manifest_cache.SWITCH
    enabled = switch in given and _truth(switch, given[switch]) == "true"
    return manifest_cache.tiers(environment) if enabled else ()


def is_secret(name: str) -> bool:
    """Whether a variable holds passwords, or is a misspelt name of one that does."""
    if name in (SECRET_FILE, "AUTH_REGISTRIES_DELIMITER", "AUTH_REGISTRY_DELIMITER"):
        return False
    return bool(get_close_matches(name, (SECRET,), n=1, cutoff=0.85)) or name.startswith("AUTH_REGISTR")


def _warnings(given: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(given):
        if name in _INEFFECTIVE:
            yield f"{name} has no effect, {_INEFFECTIVE[name]}"
        elif name not in KNOWN and (nearest := _nearest(name)) is not None:
            yield f"{name} is no variable of docker-registry-proxy's or ours: did you mean {nearest}?"
    unused = [name for name in given if name in manifest_cache.VARIABLES and name != manifest_cache.SWITCH]
    if unused and given.get(manifest_cache.SWITCH, "false").lower() in _FALSE:
        yield f"{', '.join(sorted(unused))}: no effect without {manifest_cache.SWITCH}=true"
    if SECRET in given and SECRET_FILE in given:
        yield f"{SECRET_FILE} has no effect, because {SECRET} is given too"


def _nearest(name: str) -> str | None:
    """The variable that this one was meant to be, if it looks as if."""
    cutoff = 0.5 if name.startswith(_FAMILIES) else 0.88
    return next(iter(get_close_matches(name, KNOWN, n=1, cutoff=cutoff)), None)


def _registries(hosts: Iterable[str]) -> Iterator[RegistryConfig]:
    for text in dict.fromkeys(hosts):
        try:
            host = RegistryHost.parse(text)
        except ValueError as error:
            raise UsageError(
                f"environment variable REGISTRIES: {error}",
                next_step="write host names, with spaces between them",
            ) from error
        yield RegistryConfig(name=str(host), hosts=(host,))


def _truth(name: str, text: str) -> str:
    if text.lower() in ("true", "1", "yes", "on"):
        return "true"
    if text.lower() in _FALSE:
        return "false"
    raise UsageError(f"environment variable {name} is neither true nor false", next_step=f"set {name}=true")


def _size(text: str) -> str:
    """nginx's size (`32g`) as ours (`32GiB`)."""
    number, unit = text.rstrip("bBkKmMgGtTiI"), text.lstrip("0123456789.").upper().rstrip("B").rstrip("I")
    if not number.isdecimal() or unit not in _UNITS:
        raise UsageError(
            "environment variable CACHE_MAX_SIZE is no size", next_step="write it as CACHE_MAX_SIZE=32g"
        )
    return f"{number}{_UNITS[unit]}" if unit else number
