"""How a tier's TLS is verified: a CA for this tier alone, never in the system's store.

A CONNECT proxy that intercepts signs what it shows with a CA of its own. That certificate comes from a file,
or from the proxy's `/ca.crt` at the first use, and is pinned then: a later one is refused until somebody
removes the pin. What is not intercepted is verified against the system's store, which is trusted as well.
A central tier is verified by the configured CA, or the system's store without one.
"""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from tidegate_core.errors import TidegateError

CA_LIMIT_BYTES = 256 * 1024


class TierDistrusted(TidegateError):
    """The tier's TLS cannot be judged, or was judged and refused."""


class ConnectTrust:
    """The system's anchors and, beside them, the CA of one CONNECT proxy.

    `file` holds that CA; with `pin` it is made at the first use from what `offered` gives: what the proxy has
    at /ca.crt, None when that is no certificate. `url` is for the words to an operator.
    """

    def __init__(
        self,
        *,
        system: Path | None,
        file: Path,
        pin: bool,
        offered: Callable[[], Awaitable[bytes | None]],
        url: str,
    ) -> None:
        self._system = system
        self._file = file
        self._pin = pin
        self._offered = offered
        self._url = url
        self._ca: bytes | None = None
        self._context: ssl.SSLContext | None = None
        self._with: dict[bytes, ssl.SSLContext] = {}
        self._loading = asyncio.Lock()

    async def context(self, also: bytes = b"") -> ssl.SSLContext:
        """What to verify with; raises TierDistrusted without the file, and what `offered` raises.

        `also` is the CA (PEM) of a registry that has its own: not every proxy intercepts.
        """
        context = self._context or await self.renewed()
        if not also:
            return context
        if also not in self._with:
            wider = await asyncio.to_thread(_beside_the_system, self._system, self._ca, self._file)
            wider.load_verify_locations(cadata=also.decode("ascii", "replace"))
            self._with[also] = wider
        return self._with[also]

    async def renewed(self) -> ssl.SSLContext:
        """The same, after another look at the file; without a pin, at what the proxy offers."""
        async with self._loading:
            ca = await asyncio.to_thread(self._read)
            if ca is None:
                ca = await self._offered() if self._pin else None
                if ca is not None:
                    await asyncio.to_thread(_write, self._file, ca)
            if self._context is None or ca != self._ca:
                self._context = await asyncio.to_thread(_beside_the_system, self._system, ca, self._file)
                self._ca = ca
                self._with.clear()
            return self._context

    async def objection(self, error: ssl.SSLError | ssl.CertificateError) -> TierDistrusted:
        """Why a certificate that came through the tier was refused, and what to type about it."""
        offered = await self._offered()
        if self._ca is None or offered is None:
            cause = f"its certificates are signed by no CA that is trusted for it ({words_of(error)})"
            return TierDistrusted(cause, next_step=f"set ca in [[upstream]] to the CA of {self._url}")
        if _fingerprints(offered) == _fingerprints(self._ca):
            return TierDistrusted(f"a certificate that came through it is refused ({words_of(error)})")
        if self._pin:
            cause = f"its CA is not the one that was pinned in {self._file}"
            return TierDistrusted(cause, next_step=f"if it was meant to change: rm {self._file}")
        cause = f"its CA is not the one in {self._file}"
        step = f"if it was meant to change: curl -o {self._file} {self._url}/ca.crt"
        return TierDistrusted(cause, next_step=step)

    def _read(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            if self._pin:
                return None
            raise TierDistrusted(f"{self._file} does not exist", next_step="put the CA there") from None
        except OSError as error:
            raise TierDistrusted(f"{self._file} cannot be read: {error.strerror}") from error


class CentralTrust:
    """The CA and, for mutual TLS, the node's own certificate; read at the first use and after failures."""

    def __init__(
        self, *, system: Path | None, ca: Path | None, certificate: Path | None, key: Path | None
    ) -> None:
        self._files = (ca or system, certificate, key)
        self._context: ssl.SSLContext | None = None

    async def context(self) -> ssl.SSLContext:
        """What to verify with, and to be verified by; raises TierDistrusted."""
        return self._context or await self.renewed()

    async def renewed(self) -> ssl.SSLContext:
        """The same, from the files as they are now."""
        self._context = await asyncio.to_thread(_mutual, *self._files)
        return self._context


def words_of(error: ssl.SSLError | ssl.CertificateError) -> str:
    """Why verification failed, as OpenSSL says it."""
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else str(error)


def certificates_in(body: bytes) -> bytes | None:
    """The body itself when it holds certificates (PEM), else None."""
    try:
        x509.load_pem_x509_certificates(body)
    except ValueError:
        return None
    return body


def _beside_the_system(system: Path | None, ca: bytes | None, file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if system is None else str(system))
    # CAs that proxies make for themselves are older than RFC 5280's finer points.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if ca is not None:
        try:
            context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
        except ssl.SSLError as error:
            raise TierDistrusted(
                f"{file} holds no certificate", next_step=f"put the tier's CA there, or: rm {file}"
            ) from error
    return context


def _mutual(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    for file in (ca, certificate, key):
        if file is not None and not os.access(file, os.R_OK):
            raise TierDistrusted(f"{file} cannot be read", next_step=f"ls -l {file}")
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        cause = f"ca, certificate or key cannot be used: {error}"
        raise TierDistrusted(cause, next_step="check the files named in [[upstream]]") from error
    return context


def _fingerprints(pem: bytes) -> frozenset[bytes]:
    return frozenset(each.fingerprint(SHA256()) for each in x509.load_pem_x509_certificates(pem))


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)
