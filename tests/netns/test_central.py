"""A central tier of our own and clients as they are: containerd's mirrors, curl, and who sets HTTPS_PROXY."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from lab import Central, Fault, Lab, Node, Registry, until
from lab.pki import Authority

SMALL = "docker.io/library/small:1"
TOOL = "quay.io/team/tool:1"
CA = "/etc/central-ca.pem"
ACCEPT = "Accept: application/vnd.oci.image.index.v1+json, */*"
CRI_CONFIG = """
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d"
"""


@pytest.fixture
def central(lab: Lab) -> Central:
    return lab.add_central()


def peers(registry: Registry, *resources: str) -> set[str]:
    """Who asked the registry for such things, by their IPv4 address."""
    found = (ip_address(request.peer[0]) for request in registry.requests_for(*resources))
    return {str(getattr(each, "ipv4_mapped", None) or each) for each in found}


def address_of(node: Node) -> str:
    return str(node.interfaces[0].ip)


def mirrored(node: Node, central: Central, *, more: str = "") -> None:
    """containerd on the node, told of the mirror as its documentation has it."""
    node.write(CA, central.ca)
    for name, server in (("docker.io", "https://registry-1.docker.io"), ("quay.io", "https://quay.io")):
        hosts = f'server = "{server}"\n[host."{central.mirror}"]\ncapabilities = ["pull", "resolve"]\n'
        node.write(f"/etc/containerd/certs.d/{name}/hosts.toml", f'{hosts}ca = "{CA}"\n{more}\n')
    node.start_containerd(CRI_CONFIG)


def get(node: Node, url: str, *options: str) -> tuple[int, str]:
    """The status (0: none) and the body that curl gets."""
    done = node.run(["curl", "-sS", "--max-time", "20", "-H", ACCEPT, "-w", "\n%{http_code}", *options, url])
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body or done.stderr


def proxied(node: Node, central: Central) -> dict[str, str]:
    """The node trusts the tier's authority; the environment that sends its clients there."""
    node.write("/usr/local/share/ca-certificates/central.crt", central.ca)
    node.run(["update-ca-certificates"]).or_raise()
    return {"HTTPS_PROXY": central.proxy}


def test_containerd_pulls_through_the_mirror_cold_and_warm_and_with_the_registry_dark(
    lab: Lab, node: Node, registry: Registry, central: Central
) -> None:
    """T3, C2: two registries by one mirror; the registry meets the central tier alone, and once."""
    central.start()
    mirrored(node, central)

    for reference in (SMALL, TOOL):
        pull = node.pull("cri", reference)
        assert pull.contents == lab.images[reference].contents, pull.stderr
    assert peers(registry, "ping", "manifest", "bytes") == {address_of(central)}

    registry.goes_dark()
    lab.quay.goes_dark()
    for reference in (SMALL, TOOL):
        pull = node.pull("cri", reference)
        assert pull.contents == lab.images[reference].contents, pull.stderr
    assert central.status()["cache"]["hits"] > 0
    assert (central.admin("healthz"), central.admin("readyz")) == ("ok\n", "serving\n")


def test_the_mirror_is_for_those_who_have_a_certificate(lab: Lab, node: Node, central: Central) -> None:
    """T8: mutual TLS; containerd has one and pulls, a stranger gets no answer, with or without another."""
    clients = Authority("lab fleet")
    identity = clients.client("node")
    central.write("/etc/fleet-ca.pem", clients.anchor)
    central.start(mirror='client_ca = "/etc/fleet-ca.pem"')
    node.write("/etc/node.pem", identity.certificate)
    node.write("/etc/node.key", identity.key)
    mirrored(node, central, more='client = [["/etc/node.pem", "/etc/node.key"]]')
    stranger = Authority("strangers").client("node")
    node.write("/etc/stranger.pem", stranger.certificate)
    node.write("/etc/stranger.key", stranger.key)
    url = f"{central.mirror}/v2/library/small/manifests/1?ns=docker.io"
    blocked = ["--cert", "/etc/stranger.pem", "--key", "/etc/stranger.key"]

    pull = node.pull("cri", SMALL)

    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    assert get(node, url, "--cacert", CA)[0] == 0
    assert get(node, url, "--cacert", CA, *blocked)[0] == 0
    assert get(node, url, "--cacert", CA, "--cert", "/etc/node.pem", "--key", "/etc/node.key")[0] == 200


def test_an_address_that_is_not_allowed_uses_neither_door(
    node: Node, registry: Registry, central: Central
) -> None:
    """T8: the CONNECT port says so, the mirror hangs up; the log names the client once."""
    central.start('[access]\nallow = ["127.0.0.0/8", "198.51.100.0/24"]')
    node.write(CA, central.ca)
    manifest = "/v2/library/small/manifests/1"

    mirror, _ = get(node, f"{central.mirror}{manifest}?ns=docker.io", "--cacert", CA)
    page = get(node, f"{central.proxy}/setup/systemd")
    tunnel = node.run(["curl", "-sS", "-x", central.proxy, f"https://registry-1.docker.io{manifest}"])

    assert mirror == 0
    assert page[0] == 403
    assert "[access] allow" in page[1]
    assert "403" in tunnel.stderr
    assert registry.connections == []
    assert central.log.count("a client is not in [access] allow") == 1


def test_the_mirror_answers_what_it_has_not_in_the_specifications_words(node: Node, central: Central) -> None:
    """T3: an unknown registry, a push, no ns (Docker Hub, as dockerd's mirrors have it), and the ping."""
    central.start("[push]\nallow = true")
    node.write(CA, central.ca)

    def ask(path: str, *options: str) -> tuple[int, str]:
        status, body = get(node, f"{central.mirror}{path}", "--cacert", CA, *options)
        errors = json.loads(body).get("errors", [{"code": ""}]) if body else [{"code": ""}]
        return status, errors[0]["code"]

    assert ask("/v2/") == (200, "")
    assert ask("/v2/library/small/manifests/1") == (200, "")
    assert ask("/v2/library/small/manifests/1?ns=registry.example.net") == (404, "NAME_UNKNOWN")
    assert ask("/v2/library/small/blobs/uploads/?ns=docker.io", "-X", "POST") == (405, "UNSUPPORTED")


def test_connect_intercepts_registries_and_tunnels_the_rest(
    lab: Lab, node: Node, registry: Registry, central: Central
) -> None:
    """T1, T8: a registry's certificate is the tier's, a neighbour's its own; other ports are refused."""
    central.start()
    env = proxied(node, central)
    pull = node.pull("skopeo", SMALL, env=env)
    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    assert peers(registry, "ping", "manifest", "bytes") == {address_of(central)}
    registry.forget()
    assert node.pull("podman", SMALL, env=env).contents == lab.images[SMALL].contents
    assert registry.requests_for("bytes") == []

    token = node.run(["curl", "-sSv", "-x", central.proxy, "https://auth.docker.io/token"])
    other_port = node.run(["curl", "-sS", "-x", central.proxy, "https://quay.io:8443/"])

    assert "Lab Internet CA" in token.stderr
    assert "403" in other_port.stderr
    metrics = central.metrics()
    assert metrics['tidegate_connections_total{outcome="intercepted",reason="registry"}'] > 0
    assert metrics['tidegate_connections_total{outcome="tunnelled",reason="other_host"}'] > 0
    assert metrics['tidegate_connections_total{outcome="refused",reason="other_host"}'] == 1


def test_a_clients_own_login_is_its_own(lab: Lab, node: Node, registry: Registry, central: Central) -> None:
    """I6, C15: by CONNECT and by the mirror, what alice may read is neither bob's nor everybody's."""
    private = "docker.io/alice/private:1"
    alice, bob = registry.users["alice"], registry.users["bob"]
    env = proxied(node, central.start())
    node.write(CA, central.ca)

    hers = node.pull("skopeo", private, login=alice, env=env)
    his = node.pull("skopeo", private, login=bob, env=env)
    nobodys = node.pull("skopeo", private, env=env)
    layer = lab.images[private].contents.layers[0]
    mirror, _ = get(node, f"{central.mirror}/v2/alice/private/blobs/{layer}?ns=docker.io", "--cacert", CA)

    assert hers.contents == lab.images[private].contents, hers.stderr
    assert (his.ok, nobodys.ok, mirror) == (False, False, 401)


def test_a_push_through_connect_is_refused_unless_it_is_allowed(
    lab: Lab, node: Node, registry: Registry, central: Central
) -> None:
    """T1: docker-registry-proxy's ALLOW_PUSH, and its default."""
    alice = registry.users["alice"]
    env = proxied(node, central.start())
    source = "/srv/pushed"
    node.run(["skopeo", "copy", "-q", f"docker://{SMALL}", f"dir:{source}"]).or_raise()
    push = ["skopeo", "copy", "-q", "--dest-creds", f"{alice.name}:{alice.password}", f"dir:{source}"]

    refused = node.run([*push, "docker://docker.io/alice/pushed:1"], env=env)
    central.stop()
    central.start(env={"ALLOW_PUSH": "true"})
    allowed = node.run([*push, "docker://docker.io/alice/pushed:1"], env=env)

    assert not refused.ok
    assert "pushes through this cache are switched off" in refused.stderr
    assert allowed.ok, allowed.stderr


def test_a_dead_registry_ends_neither_the_tier_nor_its_health(
    node: Node, registry: Registry, central: Central
) -> None:
    """T10: liveness and readiness are not the upstreams'; what cannot be had is answered as such."""
    central.start()
    node.write(CA, central.ca)
    registry.goes_dark()

    url = f"{central.mirror}/v2/library/small/manifests/1?ns=docker.io"
    status, body = get(node, url, "--cacert", CA)

    assert status == 502, body
    assert json.loads(body)["errors"][0]["code"] == "UNAVAILABLE"
    assert [upstream["healthy"] for upstream in central.status()["upstreams"]] == [False]
    assert (central.admin("healthz"), central.admin("readyz")) == ("ok\n", "serving\n")
    registry.comes_back()
    until(lambda: get(node, url, "--cacert", CA)[0] == 200, "the registry is asked again", within_s=30)


def test_a_stopped_tier_lets_what_is_under_way_end(
    lab: Lab, node: Node, registry: Registry, central: Central
) -> None:
    """SIGTERM in the middle of a layer: every byte of it comes, nobody is let in, the exit code is 0."""
    layer = lab.images[SMALL].largest_layer
    registry.fault(Fault(on="bytes", bytes_per_s=400_000, times=None))
    central.start()
    node.write(CA, central.ca)
    url = f"{central.mirror}/v2/library/small/blobs/{layer}?ns=docker.io"
    download = node.spawn(["curl", "-sS", "--fail", "--cacert", CA, "-o", "/srv/layer", url])
    until(lambda: registry.requests_for("blob") != [], "bytes flow")
    code = central.stop()

    assert download.wait(20) == 0, download.log
    assert code == 0
    digest = node.run(["sha256sum", "/srv/layer"]).or_raise().stdout.split()[0]
    assert f"sha256:{digest}" == layer
    assert get(node, url, "--cacert", CA)[0] == 0


def test_a_tier_that_is_its_own_upstream_says_so(lab: Lab, node: Node, central: Central) -> None:
    """RFC 9110, 7.6.3: the circle is found at its second round, and the registry is asked instead."""
    upstream = f'[[upstream]]\nkind = "central"\nurl = "{central.mirror}"\nca = "{CA}"\n'
    central.start()
    central.write(CA, central.ca)
    central.stop()
    central.start(upstream)
    node.write(CA, central.ca)

    status, _ = get(node, f"{central.mirror}/v2/library/small/manifests/1?ns=docker.io", "--cacert", CA)

    assert status == 200
    until(lambda: '"status":508' in central.log, "the circle is told")
