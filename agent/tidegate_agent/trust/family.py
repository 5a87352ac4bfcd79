"""Families of distributions, told apart by os-release(5), and how each keeps its local trust anchors.

Debian and Ubuntu are supported (update-ca-certificates(8)). The others are known by name, so that the answer
is the manual step and not "unknown".
"""

import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from tidegate_core.errors import TidegateError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where local anchors go, what makes the bundle from them, and what else that leaves behind."""

    name: str
    anchors: PurePosixPath
    suffix: str
    bundle: PurePosixPath
    links: PurePosixPath  # symbolic links to the anchors, and OpenSSL's hash links to those
    selection: PurePosixPath  # which of the distribution's own certificates are wanted, ca-certificates.conf
    update: str


DEBIAN = Family(
    name="debian",
    anchors=PurePosixPath("/usr/local/share/ca-certificates"),
    suffix=".crt",
    bundle=PurePosixPath("/etc/ssl/certs/ca-certificates.crt"),
    links=PurePosixPath("/etc/ssl/certs"),
    selection=PurePosixPath("/etc/ca-certificates.conf"),
    update="update-ca-certificates",
)

FAMILIES = {"debian": DEBIAN, "ubuntu": DEBIAN}

# What an administrator of these types instead, with the certificate's path put in.
MANUAL_STEPS = {
    "rhel": "cp {} /etc/pki/ca-trust/source/anchors/ && update-ca-trust",
    "fedora": "cp {} /etc/pki/ca-trust/source/anchors/ && update-ca-trust",
    "suse": "cp {} /etc/pki/trust/anchors/ && update-ca-certificates",
    "alpine": "cp {} /usr/local/share/ca-certificates/tidegate.crt && update-ca-certificates",
    "arch": "trust anchor --store {}",
}


def family_of(os_release: str, *, certificate: str) -> Family:
    """The family by ID, then by ID_LIKE; TidegateError with the manual step for one that is not supported."""
    fields = dict(line.partition("=")[::2] for line in os_release.splitlines() if "=" in line)
    values = {key: " ".join(shlex.split(value)) for key, value in fields.items() if key in ("ID", "ID_LIKE")}
    names = [values.get("ID", ""), *values.get("ID_LIKE", "").split()]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    manual = next((MANUAL_STEPS[name] for name in names if name in MANUAL_STEPS), None)
    raise TidegateError(
        f"the trust store of {names[0] or 'this distribution'} is not supported yet",
        next_step=manual.format(shlex.quote(certificate)) if manual else f"add {certificate} to it by hand",
    )
