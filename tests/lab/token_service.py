"""The registry token service (distribution's "Token Authentication Specification"), as the front plays it.

Anonymous clients may pull public repositories, users with a password also the private ones that name them.
Pure: requests in, a status and a JSON body out. It does not remember the tokens it gave.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from .pki import Identity

ISSUER = "lab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Who may read what: a repository that `private` does not name is public; its users may also push,
    as everyone may to what lies below their own name."""

    passwords: Mapping[str, str]
    private: Mapping[str, Sequence[str]]

    def actions(self, user: str, repository: str, asked: Sequence[str]) -> list[str]:
        allowed = set()
        if user and repository.startswith(f"{user}/"):
            allowed = {"pull", "push"}
        elif repository not in self.private:
            allowed = {"pull"}
        elif user in self.private[repository]:
            allowed = {"pull", "push"}
        return [action for action in asked if action in allowed]


class Signer:
    """Signs tokens that docker-registry accepts: RS256 with the certificate in x5c (RFC 7515 4.1.6)."""

    def __init__(self, identity: Identity):
        key = serialization.load_pem_private_key(identity.key, None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self._key = key
        der = x509.load_pem_x509_certificate(identity.certificate).public_bytes(serialization.Encoding.DER)
        self._header = _part({"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]})

    def token(self, *, service: str, user: str, access: Sequence[object], now: int, lifetime_s: int) -> str:
        times = {"iat": now, "nbf": now - 60, "exp": now + lifetime_s, "jti": uuid.uuid4().hex}
        claims = _part({"iss": ISSUER, "sub": user, "aud": service, "access": access, **times})
        signed = f"{self._header}.{claims}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"


def basic_credentials(authorization: str) -> tuple[str, str] | None:
    """User and password of an `Authorization: Basic` header (RFC 7617); None when it is not one."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        user, colon, password = base64.b64decode(encoded).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if scheme.lower() == "basic" and colon else None


def answer(
    *,
    rights: Rights,
    signer: Signer,
    service: str,
    scopes: Sequence[str],
    credentials: tuple[str, str] | None,
    now: int,
    lifetime_s: int,
    strict: bool = False,
) -> tuple[int, dict[str, object]]:
    """Status and body for a token request: wrong credentials are refused, missing rights not granted.

    `strict` as GitLab's: who misses a right gets no token at all, and nobody has one without a login.
    """
    user = ""
    if credentials is not None:
        user, password = credentials
        if rights.passwords.get(user) != password:
            return 401, {"details": "incorrect username or password"}
    access = []
    for scope in scopes:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "repository":
            granted = rights.actions(user, name, actions.split(","))
            if strict and not (user and granted):
                return 403, {"errors": [{"code": "DENIED", "message": "access forbidden"}]}
            access.append({"type": kind, "name": name, "actions": granted})
    token = signer.token(service=service, user=user, access=access, now=now, lifetime_s=lifetime_s)
    return 200, {"token": token, "access_token": token, "expires_in": lifetime_s}


def _part(value: object) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
