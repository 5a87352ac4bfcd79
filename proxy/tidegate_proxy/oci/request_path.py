"""A registry request as one value: OCI distribution-spec, "Endpoints".

`parse_request` reads a method and an undecoded path once. Reads (GET, HEAD) of what a cache can
know become the variants of `Read`; pushes become `Upload` or `Write`; `Other` is everything else,
and is passed through untouched. Two equal values ask for the same thing.

Names are matched undecoded, so percent-encoding never hides a slash or a dot in one: the grammar has
no `%`. The one exception is a digest's colon, which some clients write as %3A. Under /v2/ malformed names
and digests, dot segments, control characters and encoded slashes are refused with the specification's
code. Paths outside /v2/ (token services, signed upload locations) are not judged.

This module does not know hosts, headers or `?ns=`, and does not decide what may be cached.
"""

import re
from dataclasses import dataclass

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.digest import Digest, InvalidDigest, UnverifiableDigest
from tidegate_proxy.oci.oci_error import Code, OciError
from tidegate_proxy.oci.reference import InvalidRepository, InvalidTag, Repository, Tag, parse_reference


@dataclass(frozen=True, slots=True)
class Ping:
    """GET or HEAD of `/v2/` or `/v2`: does this host speak the protocol, and what does it want to know."""


@dataclass(frozen=True, slots=True)
class ManifestByTag:
    """A manifest by a name that may move."""

    repository: Repository
    tag: Tag


@dataclass(frozen=True, slots=True)
class ManifestByDigest:
    """A manifest by its content."""

    repository: Repository
    digest: Digest


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer, a configuration, or any other content that is not a manifest."""

    repository: Repository
    digest: Digest


@dataclass(frozen=True, slots=True)
class Referrers:
    """The manifests whose subject is this digest. The answer depends on the query (`artifactType`)."""

    repository: Repository
    digest: Digest
    query: str = ""


@dataclass(frozen=True, slots=True)
class TagsList:
    """The tags of a repository. The answer depends on the query (`n`, `last`)."""

    repository: Repository
    query: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """Any step of a blob upload, by any method; the session is opaque, and empty where an upload starts."""

    repository: Repository
    session: str


Read = ManifestByTag | ManifestByDigest | Blob | Referrers | TagsList


@dataclass(frozen=True, slots=True)
class Write:
    """PUT, POST, PATCH or DELETE of what could be read at the same path.

    `target` is None when it is named by a digest that cannot be verified here.
    """

    method: str
    repository: Repository
    target: Read | None


@dataclass(frozen=True, slots=True)
class Other:
    """Anything else, passed through: the catalog, extensions, token services, unknown methods and algorithms.

    `raw` is the undecoded path, without the query, which may hold credentials.
    """

    raw: str


Request = Ping | Read | Upload | Write | Other


class RequestRefused(TidegateError):
    """The request is malformed or hostile; `error` is the answer."""

    def __init__(self, error: OciError) -> None:
        super().__init__(error.message)
        self.error = error


_READS = frozenset({"GET", "HEAD"})
_WRITES = frozenset({"PUT", "POST", "PATCH", "DELETE"})

# Read from the end, because a repository may itself be called `a/manifests`; only below `blobs/uploads`
# everything is the registry's own. The name is optional and trailing slashes belong to the last part, so
# that the grammar meets, and refuses, both.
_UPLOAD = re.compile(r"/v2/(?:(?P<name>.*)/)?blobs/uploads(?:/(?P<session>.*))?", re.DOTALL)
_ENDPOINT = re.compile(
    r"/v2/(?:(?P<name>.*)/)?"
    r"(?:(?P<kind>manifests|blobs|referrers)/(?P<reference>[^/]*/*)|tags/list(?P<rest>/*))",
    re.DOTALL,
)
_ENCODED_COLON = re.compile(r"%3a", re.IGNORECASE)

# In what is passed through under /v2/: what another reader may resolve to a path that we did not see.
_NOT_A_PATH = re.compile(r"[^\x21-\x7e]|[\\?#]|%(?:[01][0-9a-f]|7f|5c)", re.IGNORECASE)
_DOT_SEGMENT = re.compile(r"(?:^|/|%2f)(?:\.|%2e){1,2}(?:/|%2f|$)", re.IGNORECASE)
_HIDDEN_SEGMENT = re.compile(r"//|%2f", re.IGNORECASE)


def parse_request(method: str, raw_path: str, raw_query: str = "") -> Request:
    """Read a request line's method and undecoded path once; raise RequestRefused with the answer to give."""
    if raw_path in ("/v2/", "/v2"):
        return Ping() if method in _READS else Other(raw_path)
    if not raw_path.startswith("/v2/"):
        return Other(raw_path)
    if upload := _UPLOAD.fullmatch(raw_path):
        return Upload(_repository(upload["name"]), _session(upload["session"] or ""))
    endpoint = _ENDPOINT.fullmatch(raw_path)
    if endpoint is None:
        if _is_hostile(raw_path) or _HIDDEN_SEGMENT.search(raw_path):
            raise _refused("NAME_INVALID", "the path is malformed", path=raw_path)
        return Other(raw_path)

    repository = _repository(endpoint["name"])
    if endpoint["rest"]:
        raise _refused("NAME_INVALID", "the path ends with a slash", path=raw_path)
    target = _target(repository, endpoint["kind"], endpoint["reference"], raw_query)
    if method in _WRITES:
        return Write(method, repository, target)
    return target if target is not None and method in _READS else Other(raw_path)


def _target(repository: Repository, kind: str | None, reference: str, query: str) -> Read | None:
    """What the path names, or None when its digest cannot be verified here."""
    if kind is None:
        return TagsList(repository, query)
    reference = _ENCODED_COLON.sub(":", reference, count=1)
    try:
        if kind == "manifests":
            match parse_reference(reference):
                case Tag() as tag:
                    return ManifestByTag(repository, tag)
                case Digest() as digest:
                    return ManifestByDigest(repository, digest)
        digest = Digest.parse(reference)
    except UnverifiableDigest:
        return None
    except InvalidDigest as error:
        raise _refused("DIGEST_INVALID", error.cause, digest=reference) from error
    except InvalidTag as error:
        raise _refused("MANIFEST_INVALID", error.cause, tag=reference) from error
    return Blob(repository, digest) if kind == "blobs" else Referrers(repository, digest, query)


def _repository(name: str | None) -> Repository:
    try:
        return Repository.parse(name or "")
    except InvalidRepository as error:
        raise _refused("NAME_INVALID", error.cause, name=name or "") from error


def _session(text: str) -> str:
    # The registry made it up and may have escaped anything in it, a slash too.
    if _is_hostile(text):
        raise _refused("BLOB_UPLOAD_INVALID", "the upload session is malformed", session=text)
    return text


def _is_hostile(path: str) -> bool:
    return bool(_NOT_A_PATH.search(path) or _DOT_SEGMENT.search(path))


def _refused(code: Code, message: str, **detail: str) -> RequestRefused:
    return RequestRefused(OciError(code, message, {key: text[:256] for key, text in detail.items()}))
