"""The lab proves itself, without an agent: real clients pull, faults bite, and nothing is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import (
    CLIENTS,
    LARGE,
    SMALL,
    CommandFailed,
    Fault,
    Host,
    Image,
    Lab,
    Node,
    Recipe,
    Redirects,
    Registry,
    Resolver,
    until,
)
from lab.pki import Authority
from lab.requirements import missing
from lab.resolver import DOMAIN, HOST, LARGE_TXT, MISSING, SERVFAIL

REFERENCE = "docker.io/library/small:1"
REPOSITORY = "library/small"
TESTS = Path(__file__).resolve().parents[1]
MIDDLING = Recipe(
    name="middling", layers=(100_000,), with_busybox=False
)  # for faults in the middle of a body


@pytest.fixture
def image(lab: Lab) -> Image:
    return lab.images[REFERENCE]


# Clients


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_pulls_a_multi_platform_image_with_a_token_and_through_a_redirect(
    node: Node, registry: Registry, image: Image, client: str
) -> None:
    """The lab's direct path is Docker Hub's: token service, index, manifest, 307 to the blob host."""
    node.start_daemon_of(client)

    pull = node.pull(client, REFERENCE)

    assert pull.ok, pull.stderr
    assert pull.brought(image)
    assert {request.host for request in registry.requests_for("token")} == {"auth.docker.io"}
    blobs = len(image.contents.layers) + 1
    assert [request.status for request in registry.requests_for("blob")] == [307] * blobs
    assert {request.host for request in registry.requests_for("bytes")} == {
        "production.cloudflare.docker.com"
    }
    assert {request.authorization for request in registry.requests_for("bytes")} == {""}
    assert {request.authorization for request in registry.requests_for("blob")} == {"Bearer"}


def test_connections_are_counted_when_tcp_accepts_them(node: Node, registry: Registry) -> None:
    """A connection that never says anything is logged with the peer's address; forgetting starts anew."""
    source = "import socket; print(socket.create_connection(('registry-1.docker.io', 443)).getsockname()[1])"
    port = int(node.python(source).or_raise().stdout)

    (connection,) = registry.connections
    assert connection.peer == (str(node.interfaces[0].ip), port)
    assert connection.local == (str(registry.addresses["registry-1.docker.io"][0]), 443)
    registry.forget()
    assert registry.connections == []


def test_the_second_registry_is_another_one(lab: Lab, node: Node) -> None:
    """quay.io has its own addresses, token path and log."""
    pull = node.pull("podman", "quay.io/team/tool:1")

    assert pull.ok, pull.stderr
    assert pull.contents == lab.images["quay.io/team/tool:1"].contents
    assert {request.host for request in lab.quay.requests} == {"quay.io", "cdn01.quay.io"}
    assert lab.registry.requests == []
    assert lab.registry.connections == []


def test_a_large_layer_is_pulled_whole(lab: Lab, node: Node) -> None:
    """The image with the 100 MB layer is built once, on demand, and comes out right."""
    image = lab.large()

    assert node.pull("skopeo", "docker.io/library/large:1").contents == image.contents
    assert image.sizes[image.largest_layer] > LARGE.layers[0]


def test_publishing_again_moves_the_tag(lab: Lab, node: Node, registry: Registry) -> None:
    first = registry.publish(SMALL, "library/moving")
    second = registry.publish(MIDDLING, "library/moving")

    assert second.digest != first.digest
    assert node.pull("skopeo", "docker.io/library/moving:1").contents == second.contents


def test_a_kept_storage_is_used_again_and_a_fresh_one_is_not(node: Node, registry: Registry) -> None:
    node.pull("podman", REFERENCE, storage="kept")
    registry.forget()
    node.pull("podman", REFERENCE, storage="kept")
    layers_again = len(registry.requests_for("bytes"))
    registry.forget()
    node.pull("podman", REFERENCE)

    assert layers_again <= 1  # podman asks for the config again, not for layers
    assert len(registry.requests_for("bytes")) == 4


def test_pulls_run_side_by_side_and_can_be_killed(node: Node, registry: Registry, image: Image) -> None:
    registry.fault(Fault(on="manifest", stall_at=10, times=1))
    stalled = node.start_pull("skopeo", REFERENCE)
    until(lambda: registry.requests_for("manifest"), "the stalled client asks for the manifest")
    other = node.start_pull("podman", REFERENCE)

    assert other.wait().contents == image.contents
    stalled.process.kill(signal.SIGTERM)
    assert not stalled.wait().ok


# Rights


@pytest.mark.parametrize("client", ["skopeo", "podman"])
def test_a_private_repository_is_refused_without_and_given_with_the_right_login(
    lab: Lab, node: Node, client: str
) -> None:
    """alice may, bob with a good password of his own may not, nobody may not."""
    reference = "docker.io/alice/private:1"

    assert not node.pull(client, reference).ok
    assert not node.pull(client, reference, login=lab.registry.users["bob"]).ok
    pull = node.pull(client, reference, login=lab.registry.users["alice"])
    assert pull.ok, pull.stderr
    assert pull.contents == lab.images[reference].contents


def test_a_wrong_password_is_refused(node: Node, registry: Registry) -> None:
    impostor = type(registry.users["alice"])(name="alice", password="guess")

    assert not node.pull("skopeo", REFERENCE, login=impostor).ok
    assert [request.status for request in registry.requests_for("token")] == [401]


def test_a_password_grant_by_post_gives_a_token(node: Node) -> None:
    """containerd's way (OAuth 2 password grant in a form)."""
    form = "grant_type=password&username=alice&password=alice-secret&service=registry.docker.io"
    scope = "scope=repository:alice/private:pull"
    answer = node.run(["curl", "-sf", "https://auth.docker.io/token", "-d", form, "-d", scope]).or_raise()
    token = json.loads(answer.stdout)["access_token"]

    url = "https://registry-1.docker.io/v2/alice/private/manifests/1"
    accept = ["-H", "Accept: application/vnd.oci.image.manifest.v1+json"]
    assert _http_code(node, url, *accept, "-H", f"Authorization: Bearer {token}") == "200"


# Redirects


@pytest.mark.parametrize(
    ("status", "hops", "relative"),
    [
        (301, 1, False),
        (302, 1, True),
        (303, 3, False),
        (307, 3, True),
        (308, 2, False),
    ],
)
def test_every_kind_of_redirect_leads_to_the_bytes(
    node: Node, registry: Registry, image: Image, status: int, hops: int, relative: bool
) -> None:
    registry.redirect_blobs(Redirects(status=status, hops=hops, relative=relative))  # type: ignore[arg-type]

    assert node.pull("skopeo", REFERENCE).contents == image.contents
    blobs = len(image.contents.layers) + 1
    assert [request.status for request in registry.requests_for("blob")].count(status) == hops * blobs
    asked = {request.host for request in registry.requests_for("bytes")}
    assert asked == {"registry-1.docker.io" if relative else "production.cloudflare.docker.com"}


def test_redirects_can_be_switched_off(node: Node, registry: Registry, image: Image) -> None:
    registry.serve_blobs_itself()

    assert node.pull("skopeo", REFERENCE).contents == image.contents
    assert registry.requests_for("blob") == []
    assert {request.host for request in registry.requests_for("bytes")} == {"registry-1.docker.io"}


def test_a_signature_counts_to_the_letter_and_to_the_second(
    node: Node, registry: Registry, image: Image
) -> None:
    """Who decodes `%2F` in a signed redirect is refused, as by S3; so is who comes late."""
    url = _signed_url(node, image)
    registry.redirect_blobs(Redirects(signature_lifetime_s=-1))
    late = _signed_url(node, image)

    assert "%2F" in url
    assert _http_code(node, url) == "200"
    assert _http_code(node, url.replace("%2F", "/")) == "403"
    assert _http_code(node, late) == "403"


# Faults


@pytest.fixture
def blob(node: Node, registry: Registry) -> Iterator[tuple[str, bytes]]:
    """The signed URL of a blob of some 100 kB, and its bytes."""
    image = registry.publish(MIDDLING, "library/faulty")
    digest = image.largest_layer
    url = _signed_url(node, image, "library/faulty")
    node.run(["curl", "-sf", "-o", "/tmp/good", url]).or_raise()
    good = node.path("/tmp/good").read_bytes()
    assert f"sha256:{hashlib.sha256(good).hexdigest()}" == digest
    yield url, good


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_status_fault_answers_in_place_of_the_registry(node: Node, registry: Registry, status: int) -> None:
    registry.fault(Fault(on="ping", status=status, headers={"Retry-After": "1"}))
    url = "https://registry-1.docker.io/v2/"
    answer = node.run(["curl", "-si", url]).stdout

    assert f"HTTP/1.1 {status}" in answer
    assert "Retry-After: 1" in answer
    assert _http_code(node, url) == "401"  # once only; the registry's own answer


def test_a_fault_meets_what_it_matches_after_what_it_skips(node: Node, registry: Registry) -> None:
    registry.fault(Fault(matching=r"^GET registry-1\.docker\.io/v2/$", status=500, skip=1, times=2))
    url = "https://registry-1.docker.io/v2/"

    assert _http_code(node, url + "other") == "404"
    assert [_http_code(node, url) for _ in range(4)] == ["401", "500", "500", "401"]
    registry.fault(Fault(status=503, times=None))
    assert [_http_code(node, url) for _ in range(2)] == ["503", "503"]
    registry.heal()
    assert _http_code(node, url) == "401"


@pytest.mark.parametrize(
    ("fault", "curl_exit", "size"),
    [
        (Fault(on="bytes", hang_up=True), {52}, 0),
        (Fault(on="bytes", cut_at=0), {18}, 0),
        (Fault(on="bytes", cut_at=1000), {18}, 1000),
        (Fault(on="bytes", cut_at=-1), {18}, -1),
        (Fault(on="bytes", cut_at=1000, cut="reset"), {56}, 1000),
        (Fault(on="bytes", cut_at=1000, chunked=True), {18, 56}, 1000),
        (Fault(on="bytes", content_length_off_by=10), {18}, None),
        (Fault(on="bytes", content_length_off_by=-10), {0}, -10),
        (Fault(on="bytes", content_length=70), {0}, 70),
        (Fault(on="bytes", stall_at=500), {28}, 500),
        (Fault(on="bytes", delay_s=3), {28}, 0),
        (Fault(on="bytes", bytes_per_s=10_000), {28}, None),
    ],
    ids=repr,
)
def test_a_fault_ends_a_body_as_described(
    node: Node,
    registry: Registry,
    blob: tuple[str, bytes],
    fault: Fault,
    curl_exit: set[int],
    size: int | None,
) -> None:
    """curl's exit code and what it got: 52 empty reply, 18 partial, 56 reset, 28 time-out."""
    url, good = blob
    registry.fault(fault)
    answer = node.run(["curl", "-s", "-m", "0.5", "-o", "/tmp/got", "-w", "%{size_download}", url])
    got = node.path("/tmp/got").read_bytes() if int(answer.stdout) else b""

    assert answer.exit_code in curl_exit, answer
    assert good.startswith(got)
    if size is not None:
        assert len(got) == (size if size >= 0 else len(good) + size)
    elif fault.bytes_per_s:
        assert 1000 <= len(got) <= 8000
    else:
        assert got == good


def test_a_body_can_go_on_after_its_content_length(
    node: Node, registry: Registry, blob: tuple[str, bytes]
) -> None:
    """What a lying origin sends is really on the wire: curl would not look at it."""
    url, good = blob
    registry.fault(Fault(on="bytes", content_length_off_by=-50_000))
    host, _, rest = url.removeprefix("https://").partition("/")
    raw = f"GET /{rest} HTTP/1.1\r\nHost: {host}\r\n\r\n"
    talk = f"openssl s_client -quiet -servername {host} -connect {host}:443 > /tmp/wire"
    node.run(["sh", "-c", talk], stdin=raw.encode()).or_raise()
    head, _, body = node.path("/tmp/wire").read_bytes().partition(b"\r\n\r\n")

    assert f"Content-Length: {len(good) - 50_000}".encode() in head
    assert body == good


@pytest.mark.parametrize("serve_itself", [False, True])
@pytest.mark.parametrize(
    ("place", "offset"), [("first", 0), ("middle", 50_000), ("last", -1), (7, 7), (-300, -300)]
)
def test_exactly_one_byte_is_corrupted(
    node: Node, registry: Registry, serve_itself: bool, place: int | str, offset: int
) -> None:
    """Also when the real docker-registry sends the bytes."""
    image = registry.publish(MIDDLING, "library/faulty")
    if serve_itself:
        registry.serve_blobs_itself()
    fetch = ["curl", "-sfL", *_bearer(node, "library/faulty"), _blob_url(image, "library/faulty"), "-o"]
    node.run([*fetch, "/tmp/good"]).or_raise()
    registry.fault(Fault(on="bytes", corrupt=place))  # type: ignore[arg-type]
    node.run([*fetch, "/tmp/bad"]).or_raise()

    good, bad = (node.path(f"/tmp/{name}").read_bytes() for name in ("good", "bad"))
    (where,) = [at for at, (a, b) in enumerate(zip(good, bad, strict=True)) if a != b]
    expected = len(good) // 2 if place == "middle" else offset % len(good)
    assert where == expected


def test_a_chunked_answer_has_no_length_and_all_the_bytes(
    node: Node, registry: Registry, blob: tuple[str, bytes]
) -> None:
    url, good = blob
    registry.fault(Fault(on="bytes", chunked=True))
    answer = node.run(["curl", "-s", "-D", "-", "-o", "/tmp/got", url]).or_raise()

    assert "transfer-encoding: chunked" in answer.stdout.lower()
    assert "content-length" not in answer.stdout.lower()
    assert node.path("/tmp/got").read_bytes() == good


def test_ranges_are_served_unless_a_fault_ignores_them(
    node: Node, registry: Registry, blob: tuple[str, bytes]
) -> None:
    url, good = blob
    fetch = ["curl", "-s", "-o", "/tmp/got", "-w", "%{http_code}", url, "-r"]
    for asked, expected in (("10-19", good[10:20]), ("40000-", good[40_000:]), ("-5", good[-5:])):
        assert node.run([*fetch, asked]).stdout == "206"
        assert node.path("/tmp/got").read_bytes() == expected
    assert node.run([*fetch, "999999-"]).stdout == "416"
    registry.fault(Fault(on="bytes", ignore_range=True))

    assert node.run([*fetch, "10-19"]).stdout == "200"
    assert node.path("/tmp/got").read_bytes() == good


def test_a_delay_is_felt_before_the_first_byte(
    node: Node, registry: Registry, blob: tuple[str, bytes]
) -> None:
    url, _ = blob
    registry.fault(Fault(on="bytes", delay_s=0.3))

    assert (
        float(node.run(["curl", "-s", "-o", "/dev/null", "-w", "%{time_starttransfer}", url]).stdout) >= 0.3
    )


# Darkness


def test_a_registry_that_goes_dark_refuses_and_comes_back(node: Node, lab: Lab, registry: Registry) -> None:
    registry.goes_dark()

    assert node.run(["curl", "-s", "https://registry-1.docker.io/v2/"]).exit_code == 7
    assert node.run(["curl", "-s", "https://production.cloudflare.docker.com/"]).exit_code == 7
    assert node.pull("skopeo", "quay.io/team/tool:1").ok
    assert registry.connections == []
    registry.comes_back()
    assert node.pull("skopeo", REFERENCE).ok


def test_one_host_of_a_registry_can_go_dark_alone(node: Node, registry: Registry) -> None:
    registry.goes_dark(only=["production.cloudflare.docker.com"])

    assert not node.pull("skopeo", REFERENCE).ok
    assert registry.requests_for("blob")
    assert registry.requests_for("bytes") == []


def test_a_silent_registry_does_not_answer_at_all(node: Node, registry: Registry) -> None:
    registry.goes_dark("silent")

    assert node.run(["curl", "-s", "-m", "0.5", "https://registry-1.docker.io/v2/"]).exit_code == 28


def test_going_dark_resets_what_is_under_way(node: Node, registry: Registry, blob: tuple[str, bytes]) -> None:
    url, _ = blob
    registry.fault(Fault(on="bytes", bytes_per_s=20_000))
    with node.spawn(["curl", "-s", "-o", "/tmp/slow", url]) as curl:
        until(
            lambda: node.path("/tmp/slow").exists() and node.path("/tmp/slow").stat().st_size,
            "the first bytes",
        )
        registry.goes_dark()

        assert curl.wait(5) in (35, 56)


def test_a_node_without_its_cable_or_its_route_reaches_nothing(lab: Lab, node: Node) -> None:
    address = str(lab.registry.addresses["registry-1.docker.io"][0])
    connect = f"import socket; socket.create_connection(('{address}', 443), 0.5)"

    lab.network.remove_default_route(node)
    assert "unreachable" in node.python(connect).stderr
    lab.network.restore_default_route(node)
    node.python(connect).or_raise()
    lab.network.unplug(node)
    assert not node.python(connect).ok
    lab.network.plug_back(node)
    assert node.pull("skopeo", REFERENCE).ok


# Names


def test_the_resolver_answers_every_kind_of_record(node: Node, resolver: Resolver) -> None:
    """A, NODATA, MX, TXT, NXDOMAIN, SERVFAIL, TTL, EDNS, and a 4 KB answer that is truncated over UDP."""
    assert node.dig("+short", HOST).stdout == "203.0.113.99\n"
    nodata = node.dig(HOST, "AAAA").stdout
    assert "status: NOERROR" in nodata
    assert "ANSWER: 0" in nodata
    assert node.dig("+short", DOMAIN, "MX").stdout == f"10 mail.{DOMAIN}.\n"
    assert node.dig("+short", DOMAIN, "TXT").stdout == '"v=spf1 -all"\n'
    assert "status: NXDOMAIN" in node.dig(MISSING).stdout
    assert "status: SERVFAIL" in node.dig(SERVFAIL).stdout
    assert "EDNS: version: 0, flags: do" in node.dig("+dnssec", HOST).stdout
    assert " tc " in node.dig("+ignore", LARGE_TXT, "TXT").stdout
    assert len(node.dig("+short", LARGE_TXT, "TXT").stdout) > 4000
    assert len(node.dig("+short", "+tcp", LARGE_TXT, "TXT").stdout) > 4000
    assert ("MX", DOMAIN) in resolver.queries
    resolver.forget()
    assert resolver.queries == []


def test_the_resolver_can_answer_otherwise(lab: Lab, node: Node, resolver: Resolver) -> None:
    """Dual stack, TTL, and names that were not there."""
    resolver.answer(dual_stack=True, ttl_s=7, records={"ghcr.io": lab.registry.addresses["auth.docker.io"]})

    assert node.dig("+short", "registry-1.docker.io", "AAAA").stdout == "2001:db8:cd::11\n"
    assert "\t7\tIN\tA\t203.0.113.12" in node.dig("ghcr.io").stdout
    assert node.pull("skopeo", REFERENCE).ok
    assert {connection.peer[0] for connection in lab.registry.connections} == {"2001:db8:77::2"}
    lab.reset()
    assert lab.node.dig("+short", "registry-1.docker.io", "AAAA").stdout == ""


def test_a_resolver_goes_dark_and_comes_back(node: Node, resolver: Resolver) -> None:
    """Refused: the port is closed. Silent: nobody is there."""
    resolver.goes_dark()
    assert "connection refused" in node.dig(HOST).stdout
    resolver.comes_back()
    assert node.dig("+short", HOST).stdout
    resolver.goes_dark("silent")
    assert "timed out" in node.dig("+time=1", HOST).stdout
    resolver.comes_back()
    assert node.dig("+short", HOST).stdout


# Hosts


def test_what_a_node_changes_is_seen_and_does_not_reach_the_machine(lab: Lab, node: Node) -> None:
    """A real update-ca-certificates works inside: curl then trusts another CA. A new node does not."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    before, machine = node.changed_files(), bundle.stat().st_mtime_ns
    other = Authority("Another CA")
    server = other.server(["localhost"])
    node.write("/tmp/server.pem", server.certificate + server.key)
    node.spawn(["openssl", "s_server", "-accept", "4433", "-cert", "/tmp/server.pem", "-www"])
    until(lambda: 4433 in node.listening(), "the server of the other CA listens")
    assert _http_code(node, "https://localhost:4433/") == "000"
    node.write("/usr/local/share/ca-certificates/another.crt", other.anchor)
    node.run(["update-ca-certificates"]).or_raise()

    changed = {path for path, stamp in node.changed_files().items() if before.get(path) != stamp}
    assert _http_code(node, "https://localhost:4433/") == "200"
    assert str(bundle) in changed
    assert "/usr/local/share/ca-certificates/another.crt" in changed
    assert other.anchor.strip() in node.path(str(bundle)).read_bytes()
    assert bundle.stat().st_mtime_ns == machine
    assert not Path("/usr/local/share/ca-certificates/another.crt").exists()
    lab.reset()
    assert other.anchor.strip() not in lab.node.path(str(bundle)).read_bytes()


def test_a_node_trusts_the_labs_internet_alone_and_its_environment_is_clean(node: Node) -> None:
    bundle = node.path("/etc/ssl/certs/ca-certificates.crt").read_text()

    assert bundle.count("BEGIN CERTIFICATE") == 1
    assert set(node.run(["env"]).stdout.split()) == {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LANG=C.UTF-8",
    }
    connect = "socket.create_connection(('quay.io', 443)), server_hostname='quay.io'"
    node.python(f"import ssl, socket; ssl.create_default_context().wrap_socket({connect})").or_raise()


def test_paths_that_the_kernel_would_answer_for_the_machine_are_refused(node: Node) -> None:
    """/proc/sys/net belongs to whoever opens it: writing it from outside would set the machine's."""
    for path in ("/proc/sys/net/ipv4/ip_forward", "/proc/net/tcp", "/proc/self/mounts"):
        with pytest.raises(ValueError, match="use run"):
            node.path(path)


def test_processes_of_a_host_are_found_by_their_own_pids_and_end_with_their_status(node: Node) -> None:
    with node.spawn(["sh", "-c", "echo $$; exec sleep 60"]) as sleeper:
        until(lambda: sleeper.log, "the shell tells its pid")
        assert sleeper.pid == int(sleeper.log)
        assert node.processes()[sleeper.pid] == "sleep 60"
        node.process(sleeper.pid).kill(signal.SIGTERM)
        assert sleeper.wait() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        node.process(sleeper.pid)
    assert node.run(["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"yes").exit_code == 3
    with pytest.raises(CommandFailed, match="nowhere: No such file"):
        node.run(["nowhere"]).or_raise()
    with pytest.raises(TimeoutError):
        node.run(["sleep", "60"], timeout_s=0.05)
    assert node.processes() == {}


def test_several_nodes_are_machines_of_their_own(lab: Lab, node: Node) -> None:
    other = lab.add_node("node2")

    assert other.run(["hostname"]).stdout == "node2\n"
    node.run(["busybox", "ping", "-c1", "-W1", str(other.interfaces[0].ip)]).or_raise()
    node.run(["busybox", "ping", "-c1", "-W1", str(other.interfaces[1].ip)]).or_raise()
    assert node.path("/etc/machine-id").read_text() != other.path("/etc/machine-id").read_text()
    assert other.pull("skopeo", REFERENCE).ok
    assert {connection.peer[0] for connection in lab.registry.connections} == {str(other.interfaces[0].ip)}


# Nothing is left

CHILD = """
import os, sys
from pathlib import Path
import pytest

def test_child(lab):
    for host in (*lab.hosts, lab.node):
        host.spawn(["sh", "-c", "trap '' TERM INT HUP; setsid sleep 1000 & exec sleep 1000"])
    lab.node.write("/etc/lab-was-here", "")
    lab.node.dig("www.example.org")
    namespaces = [os.readlink(f"/proc/{host.init_pid}/ns/{kind}")
                  for host in (*lab.hosts, lab.node) for kind in ("net", "mnt", "pid")]
    Path(os.environ["TOLD"]).write_text(" ".join(namespaces) + " told")
    if os.environ["HOW"] == "fails":
        assert lab.node is None
    if os.environ["HOW"].startswith("SIG"):
        lab.node.run(["sleep", "1000"], timeout_s=1000)
"""


@pytest.mark.parametrize("how", ["passes", "fails", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_however_pytest_ends(tmp_path: Path, how: str) -> None:
    """Processes (also those that ignore signals), mounts, namespaces, links and files of a child's lab."""
    if reason := missing():
        pytest.skip(reason)
    told = tmp_path / "told"
    (tmp_path / "test_child.py").write_text(CHILD)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tmp").mkdir()
    before = _machine()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "netns.conftest",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "TOLD": str(told),
        "HOW": how,
        "TMPDIR": str(tmp_path / "tmp"),
    }
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            until(
                lambda: child.poll() is not None or (told.exists() and told.read_text().endswith("told")),
                "the child's lab is up",
                within_s=30,
            )
            if how.startswith("SIG"):
                assert child.poll() is None
                child.send_signal(signal.Signals[how])
            output, _ = child.communicate(timeout=20)
        finally:
            child.kill()
    namespaces = set(told.read_text().split()[:-1])

    assert len(namespaces) == 12
    until(lambda: not (namespaces & _namespaces()), f"the child's namespaces are gone; {output}", within_s=5)
    assert _machine() == before
    assert list((tmp_path / "tmp").iterdir()) == []
    if how == "fails":
        assert "lab: resolver/" in output
        assert "query[A] www.example.org" in output


def _namespaces() -> set[str]:
    """The namespaces that any process of the machine is in."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for kind in ("net", "mnt", "pid"):
                try:
                    found.add(str((process / "ns" / kind).readlink()))
                except OSError:  # it ended meanwhile
                    continue
    return found


def _machine() -> tuple[object, ...]:
    """What a lab could leave on the machine: mounts, links, named namespaces, a file."""
    named = Path("/run/netns")
    return (
        Path("/proc/self/mounts").read_text(),
        sorted(link.name for link in Path("/sys/class/net").iterdir()),
        sorted(named.iterdir()) if named.exists() else [],
        Path("/etc/lab-was-here").exists(),
        *(
            Path(f"/proc/sys/net/{knob}").read_text()
            for knob in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
        ),
    )


def test_a_host_that_cannot_start_says_why_and_leaves_nothing() -> None:
    """The error of the inside is told outside: the kernel takes no host name of more than 64 bytes."""
    if reason := missing():
        pytest.skip(reason)
    before = _namespaces()
    with pytest.raises(RuntimeError, match=r"sethostname[^$]*Invalid argument"):
        Host("x" * 65)

    assert _namespaces() <= before


def test_missing_requirements_are_named_with_what_to_type() -> None:
    """The reason of a skip tells how to get rid of it."""
    show = "from lab.requirements import missing; import os; {}; print(missing())"
    for change, expected in (
        ("os.seteuid(65534)", "the lab needs root"),
        ("os.environ['PATH'] = ''", "apt install"),
    ):
        output = subprocess.run(
            [sys.executable, "-c", show.format(change)],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert expected in output


# Small steps


def _http_code(node: Node, url: str, *options: str) -> str:
    return node.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *options, url]).stdout


def _bearer(node: Node, repository: str) -> list[str]:
    url = f"https://auth.docker.io/token?service=registry.docker.io&scope=repository:{repository}:pull"
    token = json.loads(node.run(["curl", "-sf", url]).or_raise().stdout)["token"]
    return ["-H", f"Authorization: Bearer {token}"]


def _blob_url(image: Image, repository: str) -> str:
    return f"https://registry-1.docker.io/v2/{repository}/blobs/{image.largest_layer}"


def _signed_url(node: Node, image: Image, repository: str = REPOSITORY) -> str:
    where = ["curl", "-s", "-o", "/dev/null", "-w", "%{redirect_url}"]
    return node.run([*where, *_bearer(node, repository), _blob_url(image, repository)]).or_raise().stdout
