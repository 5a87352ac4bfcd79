"""Request lines become values once; what is hostile or malformed is refused with the specification's code."""

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.reference import Repository, Tag
from tidegate_proxy.oci.request_path import (
    Blob,
    ManifestByDigest,
    ManifestByTag,
    Other,
    Ping,
    Referrers,
    RequestRefused,
    TagsList,
    Upload,
    Write,
    parse_request,
)

DIGEST = Digest.of(b"tide")
ALPINE = Repository.parse("library/alpine")
READS = ["GET", "HEAD"]
WRITES = ["PUT", "POST", "PATCH", "DELETE"]

keywords = st.sampled_from(["manifests", "blobs", "referrers", "tags", "list", "v2"])
component = keywords | st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}", fullmatch=True)
repositories = st.lists(component, min_size=1, max_size=5).map("/".join).map(Repository.parse)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True).map(Tag.parse)
digests = st.one_of(
    st.binary().map(Digest.of),
    st.binary().map(lambda data: Digest.parse("sha512:" + hashlib.sha512(data).hexdigest())),
)
reads = st.one_of(
    st.builds(ManifestByTag, repositories, tags),
    st.builds(ManifestByDigest, repositories, digests),
    st.builds(Blob, repositories, digests),
    st.builds(Referrers, repositories, digests, st.sampled_from(["", "artifactType=a/b"])),
    st.builds(TagsList, repositories, st.sampled_from(["", "n=3&last=x"])),
)


def line_of(read: ManifestByTag | ManifestByDigest | Blob | Referrers | TagsList) -> tuple[str, str]:
    """The path and query that a client sends for it."""
    match read:
        case ManifestByTag(repository, reference) | ManifestByDigest(repository, reference):
            return f"/v2/{repository}/manifests/{reference}", ""
        case Blob(repository, digest):
            return f"/v2/{repository}/blobs/{digest}", ""
        case Referrers(repository, digest, query):
            return f"/v2/{repository}/referrers/{digest}", query
        case TagsList(repository, query):
            return f"/v2/{repository}/tags/list", query


def code_of(method: str, path: str) -> str:
    """The code with which the request is refused."""
    with pytest.raises(RequestRefused) as refusal:
        parse_request(method, path)
    return refusal.value.error.code


@given(st.sampled_from(READS), reads)
@example("GET", ManifestByTag(Repository.parse("manifests/manifests"), Tag.parse("manifests")))
@example("GET", ManifestByTag(Repository.parse("a/blobs"), Tag.parse("uploads")))
@example("GET", TagsList(Repository.parse("tags/list"), ""))
@example("GET", Blob(Repository.parse("a/manifests/b"), DIGEST))
def test_what_a_client_sends_for_a_read_parses_back_to_it(
    method: str, read: ManifestByTag | ManifestByDigest | Blob | Referrers | TagsList
) -> None:
    """C1, C4, C5, C22: any repository, also one named like a keyword of the protocol."""
    assert parse_request(method, *line_of(read)) == read


@given(st.sampled_from(WRITES), reads)
def test_a_write_says_what_it_writes(
    method: str, read: ManifestByTag | ManifestByDigest | Blob | Referrers | TagsList
) -> None:
    """C18: a push is never taken for a read, and tells which tag it moves."""
    assert parse_request(method, *line_of(read)) == Write(method, read.repository, read)


@pytest.mark.parametrize("method", READS)
@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_both_spellings_of_the_version_check_are_a_ping(method: str, path: str) -> None:
    """C16: clients learn from it how to authenticate."""
    assert parse_request(method, path) == Ping()


def test_the_mirror_protocols_namespace_does_not_change_what_is_asked_for() -> None:
    """T3: `?ns=` names the registry, which is not the path's matter."""
    path = f"/v2/library/alpine/blobs/{DIGEST}"

    assert parse_request("GET", path, "ns=docker.io") == Blob(ALPINE, DIGEST)


@pytest.mark.parametrize("colon", ["%3A", "%3a"])
def test_the_colon_of_a_digest_may_be_percent_encoded(colon: str) -> None:
    """C4: clients that encode a path segment as a whole write it so, and mean the same."""
    path = f"/v2/library/alpine/manifests/sha256{colon}{DIGEST.encoded}"

    assert parse_request("GET", path) == ManifestByDigest(ALPINE, DIGEST)


@pytest.mark.parametrize("method", ["GET", "HEAD", *WRITES])
@pytest.mark.parametrize(
    ("below", "session"),
    [
        ("uploads", ""),
        ("uploads/", ""),
        ("uploads/6b3c9a93-af5d-473f-a4cf-9710022185cd", "6b3c9a93-af5d-473f-a4cf-9710022185cd"),
        ("uploads/AF%2Fx%3D=.._~", "AF%2Fx%3D=.._~"),
        ("uploads/a/b", "a/b"),
    ],
)
def test_every_step_of_an_upload_is_an_upload(method: str, below: str, session: str) -> None:
    """C18: the session is the registry's own, whatever it looks like."""
    assert parse_request(method, f"/v2/library/alpine/blobs/{below}") == Upload(ALPINE, session)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/_catalog",
        "/v2/auth",
        "/v2/token",
        "/v2/_oci/ext/discover",
        "/v2/library/alpine",
        "/v2/library/alpine/manifests/latest/more",
        "/",
        "/token",
        "/v1/search",
        "/v2x",
        "/V2/a/manifests/b",
        "/artifacts-uploads/namespaces/a%2Fb/..",
    ],
)
def test_what_is_not_the_caches_business_is_passed_through(path: str) -> None:
    """C16, I1: token services below /v2/, extensions and foreign paths stay as they are."""
    assert parse_request("GET", path) == Other(path)


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "get", "", "PROPFIND"])
@pytest.mark.parametrize("path", ["/v2/", "/v2/library/alpine/manifests/latest"])
def test_a_method_that_the_protocol_does_not_know_is_passed_through(method: str, path: str) -> None:
    """I1: the registry says what it thinks of it."""
    assert parse_request(method, path) == Other(path)


@pytest.mark.parametrize("kind", ["manifests", "blobs", "referrers"])
def test_content_under_an_algorithm_that_cannot_be_verified_is_passed_through(kind: str) -> None:
    """C3, I1: it is not refused and not cached, and a write of it is still known as a write."""
    path = f"/v2/library/alpine/{kind}/blake3:abc"

    assert parse_request("GET", path) == Other(path)
    assert parse_request("DELETE", path) == Write("DELETE", ALPINE, None)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "below", ["manifests/latest", f"blobs/{DIGEST}", "tags/list", "blobs/uploads/", "blobs/uploads/x"]
)
@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "../a",
        "a/..",
        "a/../b",
        "a/manifests/../../b",
        "a/%2e%2e/b",
        "a/%2E%2E/b",
        "a/.%2e/b",
        "%2e%2e",
        "a%2Fb",
        "a%2fb",
        "a%252Fb",
        "a%5Cb",
        "%61",
        "a%00",
        "a\0b",
        "a\nb",
        "a\\b",
        "a b",
        "Library/alpine",
        "library/alpiné",
        "a" * 256,
        "a/" * 2000 + "a",
        "\udc80",
    ],
)
def test_a_hostile_name_is_refused_as_an_invalid_name(method: str, below: str, name: str) -> None:
    """C1: dot segments, encodings, control characters, upper case, length; whatever follows."""
    assert code_of(method, f"/v2/{name}/{below}") == "NAME_INVALID"


@pytest.mark.parametrize("below", ["manifests/latest", f"blobs/{DIGEST}", "tags/list", "blobs/uploads/"])
def test_a_request_without_a_name_is_refused_as_an_invalid_name(below: str) -> None:
    """C1: a repository has at least one component."""
    assert code_of("GET", f"/v2/{below}") == "NAME_INVALID"


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(
    "tag",
    [
        "",
        "/",
        "latest/",
        "latest//",
        ".",
        "..",
        "%2e%2e",
        "a%2Fb",
        "a%2F..%2Fb",
        "a%00",
        "a\0",
        "a\n",
        "a b",
        "-a",
        "a" * 129,
    ],
)
def test_a_hostile_tag_is_refused_as_an_invalid_manifest(method: str, tag: str) -> None:
    """C5: the specification has no code for tags alone."""
    assert code_of(method, f"/v2/library/alpine/manifests/{tag}") == "MANIFEST_INVALID"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("kind", ["manifests", "blobs", "referrers"])
@pytest.mark.parametrize(
    "digest",
    [
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 64 + "/",
        "sha256:" + "a" * 64 + "%00",
        "sha256%3A" + "a" * 63 + "%61",
        "sha256%253A" + "a" * 64 + ":",
        "sha256:..",
        "sha256:%2e%2e%2f",
        "sha256:" + "a" * 100_000,
        "blake3:" + "a" * 1000,
    ],
)
def test_a_hostile_digest_is_refused_as_an_invalid_digest(method: str, kind: str, digest: str) -> None:
    """C3: nothing but the exact text of a digest can become the name of a file."""
    assert code_of(method, f"/v2/library/alpine/{kind}/{digest}") == "DIGEST_INVALID"


@pytest.mark.parametrize("kind", ["blobs", "referrers"])
def test_a_blob_is_not_to_be_had_by_tag(kind: str) -> None:
    """C2: only manifests have tags."""
    assert code_of("GET", f"/v2/library/alpine/{kind}/latest") == "DIGEST_INVALID"


@pytest.mark.parametrize(
    "session", ["..", ".", "../x", "a/../b", "%2e%2e", "x%2F..", "a%00", "a\0", "a\\b", "a%5cb", "a\r\nb"]
)
def test_a_hostile_upload_session_is_refused(session: str) -> None:
    """C18: an opaque session may not climb out of its repository."""
    assert code_of("PUT", f"/v2/library/alpine/blobs/uploads/{session}") == "BLOB_UPLOAD_INVALID"


@pytest.mark.parametrize(
    "path",
    [
        "/v2//",
        "/v2/..",
        "/v2/../v2/a/manifests/b",
        "/v2/%2e%2e/x",
        "/v2/a/manifests/b/..",
        "/v2/a/manifests/b/%2e",
        "/v2/a%2Fmanifests%2Fb",
        "/v2//_catalog",
        "/v2/_catalog\0",
        "/v2/_catalog%0a",
        "/v2/a\\b",
        "/v2/_catalog#x",
        "/v2/_catalog?x",
        "/v2/a/tags/list/",
        "/v2/ä",
    ],
)
def test_a_path_below_v2_that_another_reader_may_resolve_elsewhere_is_refused(path: str) -> None:
    """C15: what is passed through must be what it looks like."""
    assert code_of("GET", path) == "NAME_INVALID"


pieces = (
    "/ v2 a A .. . %2e %2F %00 \\ é : %3A sha256 _catalog manifests blobs uploads tags list referrers latest"
)
hostile_paths = st.lists(st.sampled_from([*pieces.split(), str(DIGEST), "\0", "\n"])).map("".join)


@given(
    st.sampled_from([*READS, *WRITES, "OPTIONS"]),
    st.one_of(hostile_paths, hostile_paths.map("/v2/".__add__), st.text()),
)
def test_no_request_line_is_answered_with_anything_but_a_value_or_a_refusal(method: str, path: str) -> None:
    """C1: and a value that names something holds nothing that was not checked."""
    try:
        request = parse_request(method, path)
    except RequestRefused as refusal:
        assert path.startswith("/v2/")
        assert refusal.error.status == 400
        return

    match request:
        case Other(raw):
            assert raw == path
        case Ping():
            assert path in ("/v2", "/v2/")
        case Upload(repository, _) | Write(_, repository, _):
            assert Repository.parse(str(repository)) == repository
        case read:
            assert method in READS
            assert line_of(read)[0] == path.replace("%3A", ":", 1)
