"""What a trust store holds now: reading only.

"Trusted" means that the very certificate is in the bundle that OpenSSL, GnuTLS and Go read. Whether a running
program has read that bundle since is not this module's question.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from tidegate_agent.trust.family import Family, family_of
from tidegate_core.errors import TidegateError

BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu, Alpine, Arch
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # Fedora, RHEL
    Path("/etc/ssl/ca-bundle.pem"),  # SUSE
)

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


def system_bundle() -> Path | None:
    """The bundle this system's TLS clients read, None where none of the known ones exists."""
    return next((bundle for bundle in BUNDLES if bundle.is_file()), None)


def certificates(pem: bytes) -> frozenset[bytes]:
    """The base64 bodies of all certificates in a PEM file, without their line breaks (RFC 7468)."""
    return frozenset(b"".join(body.split()) for body in _CERTIFICATE.findall(pem))


def trusted(bundle: Path, certificate_pem: bytes) -> bool:
    """Whether the bundle holds this very certificate; False also when there is no bundle to read."""
    ours = certificates(certificate_pem)
    try:
        return bool(ours) and ours <= certificates(bundle.read_bytes())
    except OSError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One authority's place in the store.

    Its name follows from the state directory alone: it stays when the certificate is renewed, can be removed
    when the authority is gone, and keeps two installations on one machine apart.
    """

    certificate: Path  # ours, as the authority wrote it; never the key
    name: str

    @classmethod
    def of(cls, state_dir: Path, *, root: Path) -> "Anchor":
        """`state_dir` as the configuration has it; with another `root` it lies below that."""
        name = f"tidegate-{hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]}"
        return cls(certificate=below(root, state_dir) / "ca" / "ca.pem", name=name)


@dataclass(frozen=True, slots=True)
class Store:
    """The trust store of the system whose root directory is `root`."""

    root: Path
    family: Family

    @classmethod
    def of(cls, root: Path, *, certificate: Path) -> "Store":
        """By the system's os-release; TidegateError where it has none or its family is not supported."""
        for name in ("etc/os-release", "usr/lib/os-release"):
            try:
                text = (root / name).read_text()
            except OSError:
                continue
            return cls(root, family_of(text, certificate=str(certificate)))
        raise TidegateError(
            f"{root} has no etc/os-release", next_step="give the root of a system with --root"
        )

    @property
    def bundle(self) -> Path:
        return below(self.root, self.family.bundle)

    @property
    def links_dir(self) -> Path:
        return below(self.root, self.family.links)

    def anchor_file(self, anchor: Anchor) -> Path:
        return below(self.root, self.family.anchors) / f"{anchor.name}{self.family.suffix}"

    def link(self, anchor: Anchor) -> Path:
        """The symbolic link that update-ca-certificates makes for the anchor, whether it exists or not."""
        return self.links_dir / f"{anchor.name}.pem"

    def hash_links(self, anchor: Anchor) -> tuple[Path, ...]:
        """The links by subject hash that point at the anchor's own link."""
        target = Path(f"{anchor.name}.pem")
        try:
            links = [path for path in self.links_dir.iterdir() if path.is_symlink()]
        except OSError:
            return ()
        return tuple(sorted(path for path in links if path.readlink() == target))

    def holds(self, anchor: Anchor) -> bool:
        """Whether the bundle has the certificate that the authority uses now."""
        pem = content(anchor.certificate)
        return pem is not None and trusted(self.bundle, pem)


def content(path: Path) -> bytes | None:
    """A file's bytes, None where there is no such file; TidegateError where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise TidegateError(
            f"{path} cannot be read: {error.strerror}", next_step="run this as root"
        ) from error


def below(root: Path, path: object) -> Path:
    """An absolute path of another system, as it is reached from this one."""
    return root / str(path).lstrip("/")
