"""What the mirror shows to its clients, and what it wants to see of them (mutual TLS).

Its certificate is the operator's, or a leaf of this tier's own authority for each name that clients have
for it. The operator's files are read again when they change, as long as they are any good: certificates are
renewed under a process that runs on.
"""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from tidegate_core.errors import StartRefused
from tidegate_proxy.interception.leaf import Leaves, server_context


class ClientCa:
    """Demands a certificate of every client, signed by a CA in `file`."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def demanded_by(self, context: ssl.SSLContext) -> None:
        """Make the context demand it; raises OSError or ssl.SSLError."""
        context.load_verify_locations(cafile=str(self._file))
        context.verify_mode = ssl.CERT_REQUIRED


class OwnCertificate:
    """Leaves of our own authority for `names`; a client that asks for another one is shown the first's."""

    def __init__(
        self,
        leaves: Leaves,
        *,
        names: Sequence[str],
        client_ca: ClientCa | None,
        unknown: Callable[[str], None],
    ) -> None:
        """`unknown` is told the name that a client asked for, and that no certificate has."""
        self._leaves = leaves
        self._names = tuple(names)
        self._client_ca = client_ca
        self._unknown = unknown
        self._prepared: dict[str, ssl.SSLContext] = {}

    def context(self, sni: str | None) -> ssl.SSLContext:
        """The context for a ClientHello's server name, None where it has none."""
        name = sni if sni in self._names else self._names[0]
        if sni is not None and name != sni:
            self._unknown(sni)
        context = self._leaves.context(name)
        if self._client_ca is not None and self._prepared.get(name) is not context:
            self._client_ca.demanded_by(context)
            self._prepared[name] = context
        return context


class GivenCertificate:
    """The operator's certificate and key, whatever name a client asks for."""

    def __init__(
        self, certificate: Path, key: Path, *, client_ca: ClientCa | None, complain: Callable[[str], None]
    ) -> None:
        """Raises StartRefused for files that cannot be used; of later ones `complain` is told."""
        self._files = (certificate, key)
        self._client_ca = client_ca
        self._complain = complain
        self._seen = self._look()
        try:
            self._context = self._load()
        except (OSError, ValueError) as error:
            raise StartRefused(
                f"the mirror's certificate {certificate} and key {key} cannot be used: {error}",
                next_step="check the files that [mirror] names in certificate, key and client_ca",
            ) from error

    def context(self, sni: str | None) -> ssl.SSLContext:
        """The context, whatever the name; of new files when they have changed."""
        del sni
        if (seen := self._look()) != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
            except (OSError, ValueError) as error:
                self._complain(str(error))
        return self._context

    def _look(self) -> tuple[object, ...]:
        def state(file: Path) -> object:
            try:
                found = file.stat()
            except OSError as error:
                return error.errno
            return found.st_mtime_ns, found.st_ino, found.st_size

        return tuple(state(file) for file in self._files)

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        context = server_context(certificate.read_bytes() + b"\n", key.read_bytes())
        if self._client_ca is not None:
            self._client_ca.demanded_by(context)
        return context
