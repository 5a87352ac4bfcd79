"""Operating the cache from the command line: warm it, look at it, purge, carry it to another node.

Real clients, a real registry; what the registry was asked is told by its own log.
"""

from __future__ import annotations

import json
import tarfile
from typing import Any

import pytest

from lab import Agent, Image, Lab, Node, Pull, Registry
from lab.process import Completed

SMALL_1 = "docker.io/library/small:1"
SINGLE_1 = "docker.io/library/single:1"
PRIVATE_1 = "docker.io/alice/private:1"
ARCHIVE = f"oci-archive:/srv/p.tar:{PRIVATE_1}"
API = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}"]


def started(node: Node, config: str = "") -> Agent:
    node.install_trust()
    return node.start_agent(config).wait_steering()


def pulled(pull: Pull, image: Image) -> bool:
    """The pull ended well with exactly the image's bytes."""
    assert pull.ok, pull.stderr
    assert pull.contents == image.contents
    return True


def told(node: Node, *arguments: str) -> Any:  # Any: a documented JSON form
    return json.loads(node.tidegate(*arguments, "--json").or_raise().stdout)


def listed(node: Node) -> dict[str, str]:
    return {image["reference"]: image["state"] for image in told(node, "cache", "list")["images"]}


def refused(answer: Completed, *words: str, code: int = 1) -> bool:
    """It failed with that code, and says why and what to type."""
    assert answer.exit_code == code, (answer.stdout, answer.stderr)
    assert all(word in answer.stderr for word in words), answer.stderr
    assert len(answer.stderr.splitlines()) >= 2, answer.stderr
    return True


# Pull


@pytest.mark.parametrize("client", ["skopeo", "podman"])
def test_what_was_warmed_is_served_with_the_registry_dark(
    lab: Lab, node: Node, registry: Registry, client: str
) -> None:
    """C21, O5: `tidegate pull` fetches what a client wants, once; a second run says that it was cached."""
    started(node)
    image = lab.images[SMALL_1]
    first = node.tidegate("pull", "small:1").or_raise().stdout
    assert all(digest[7:19] in first for digest in image.contents.layers)
    fetched = [request.path for request in registry.requests_for("bytes")]
    assert len(fetched) == len(set(fetched)) == len(image.contents.layers) + 1
    registry.forget()

    again = node.tidegate("pull", SMALL_1).or_raise().stdout
    assert "all of it was cached" in again
    assert registry.requests_for("blob", "bytes") == []
    registry.goes_dark()
    assert pulled(node.pull(client, SMALL_1), image)


def test_all_platforms_are_pulled_when_asked_for(lab: Lab, node: Node) -> None:
    """C21, C22: this machine's platform alone without a word, all with it; one that is not there is told."""
    started(node)
    node.tidegate("pull", "small:1", "single:1").or_raise()
    assert told(node, "cache", "list", "library/small")["images"][0]["platforms"] == ["linux/amd64"]
    node.tidegate("pull", "small:1", "--all-platforms").or_raise()

    images = told(node, "cache", "list", "library/small")["images"]
    assert images[0]["platforms"] == ["linux/amd64", "linux/arm64"]
    wrong = node.tidegate("pull", "small:1", "--platform", "linux/s390x")
    assert refused(wrong, "linux/s390x", "linux/arm64", "--platform")


def test_a_private_image_is_not_warmed_without_a_login_that_is_shared(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """C21, C15: without a login it says what to configure; with a shared one it is pulled and served."""
    agent = started(node)
    assert refused(node.tidegate("pull", PRIVATE_1), "private", "[[credential]]", "tidegate reload")
    assert refused(node.tidegate("pull", "small:nope"), "no such image")
    agent.stop()
    node.write("/etc/tidegate/password", registry.users["alice"].password, mode=0o600)
    started(
        node,
        '[[credential]]\nregistry = "docker.io"\nusername = "alice"\n'
        'password_file = "/etc/tidegate/password"\nshare = "node"\n',
    )

    node.tidegate("pull", PRIVATE_1).or_raise()

    registry.forget()
    assert pulled(node.pull("skopeo", PRIVATE_1), lab.images[PRIVATE_1])
    assert registry.requests_for("bytes") == []


# List, explain, purge


def test_purge_frees_what_no_other_image_needs_and_the_next_pull_is_a_miss(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """C20: list, explain and stats tell what is there; purge takes one image, and leaves shared layers."""
    started(node)
    small, single = lab.images[SMALL_1], lab.images[SINGLE_1]
    assert "miss" in node.tidegate("cache", "explain", SMALL_1).or_raise().stdout
    assert pulled(node.pull("skopeo", SMALL_1), small)
    assert pulled(node.pull("skopeo", SINGLE_1), single)
    assert listed(node) == {SMALL_1: "complete", SINGLE_1: "complete"}
    assert told(node, "cache", "explain", "small:1")["outlook"] == "revalidate"
    before = told(node, "cache", "stats")

    done = told(node, "cache", "purge", SMALL_1)

    shared = set(small.contents.layers) & set(single.contents.layers)
    gone = {small.digest, small.contents.manifest, small.contents.config, *small.contents.layers} - shared
    assert shared and done["kept_blobs"] == len(shared)
    assert done["freed_bytes"] == sum(small.sizes[digest] for digest in gone)
    after = told(node, "cache", "stats")
    assert before["bytes"] - after["bytes"] == done["freed_bytes"]
    assert listed(node) == {SINGLE_1: "complete"}
    assert told(node, "cache", "explain", SMALL_1)["outlook"] == "miss"
    registry.forget()
    assert pulled(node.pull("podman", SINGLE_1), single)
    assert registry.requests_for("bytes") == []
    assert pulled(node.pull("podman", SMALL_1), small)
    asked = {request.path.rpartition("/")[2] for request in registry.requests_for("blob", "bytes")}
    assert asked, "the purged image came from the cache"


def test_a_repository_and_everything_are_purged(lab: Lab, node: Node) -> None:
    """C20: a repository goes with its tags and its digests; everything goes when that was confirmed."""
    started(node)
    node.tidegate("pull", "small:1", "single:1").or_raise()
    node.tidegate("cache", "purge", "docker.io/library/small").or_raise()
    assert listed(node) == {SINGLE_1: "complete"}
    assert refused(node.tidegate("cache", "purge", "small"), "nothing of", "tidegate cache list")
    assert refused(node.tidegate("cache", "purge", "--all"), "--yes", code=2)
    assert listed(node) == {SINGLE_1: "complete"}

    node.tidegate("cache", "purge", "--all", "--yes").or_raise()

    assert listed(node) == {}
    assert told(node, "cache", "stats")["bytes"] == 0


def test_a_list_goes_page_by_page_and_has_what_was_pulled_by_digest(lab: Lab, node: Node) -> None:
    """C20: each page says where the next one begins; manifests that no tag names are a list of their own."""
    started(node)
    by_digest = f"quay.io/team/tool@{lab.images['quay.io/team/tool:1'].digest}"
    node.tidegate("pull", "small:1", "single:1", by_digest).or_raise()

    first = told(node, "cache", "list", "--limit", "1")
    rest = told(node, "cache", "list", "--limit", "2", "--after", first["next"])

    assert [image["reference"] for image in first["images"] + rest["images"]] == [SINGLE_1, SMALL_1]
    assert rest["next"] is None
    untagged = told(node, "cache", "list", "quay.io/team/tool", "--untagged")["images"]
    assert [(image["reference"], image["state"]) for image in untagged] == [(by_digest, "complete")]
    assert refused(node.tidegate("cache", "list", "--after", "nonsense"), "no place in the list", code=2)
    text = node.tidegate("cache", "list", "--limit", "1").or_raise().stdout
    assert f"tidegate cache list --limit 1 --after {first['next']}" in text


def test_explain_says_what_is_missing_and_why(lab: Lab, node: Node, registry: Registry) -> None:
    """C20: a purged layer, a registry that is dark, one that is not configured, a paused agent."""
    started(node)
    image = lab.images[SINGLE_1]
    node.tidegate("pull", SINGLE_1).or_raise()
    node.tidegate("cache", "purge", image.largest_layer).or_raise()

    partial = told(node, "cache", "explain", SINGLE_1)
    assert partial["outlook"] == "miss"
    assert partial["next_step"] == f"tidegate pull {SINGLE_1}"
    assert [blob["digest"] for blob in partial["blobs"] if blob["state"] == "absent"] == [image.largest_layer]
    assert listed(node) == {SINGLE_1: "partial"}
    node.tidegate("pull", SINGLE_1).or_raise()
    registry.goes_dark()
    assert pulled(node.pull("skopeo", SINGLE_1), image)
    assert told(node, "cache", "explain", SINGLE_1)["outlook"] == "stale"
    assert refused(node.tidegate("cache", "purge", "unknown.test/x"), "[[registry]]", "tidegate reload")
    node.tidegate("pause").or_raise()
    assert told(node, "cache", "explain", SINGLE_1)["outlook"] == "not cached"


# Export and import


def test_an_exported_image_is_served_by_another_node_in_the_dark(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """C21: export reads the cache alone, other tools read it; an import is served in the dark."""
    started(node)
    image = lab.images[SMALL_1]
    node.tidegate("pull", SMALL_1).or_raise()
    registry.goes_dark()
    node.tidegate("export", SMALL_1, "-o", "/srv/small.tar").or_raise()
    node.tidegate("export", SMALL_1, "-o", "/srv/small/").or_raise()
    for source in ("oci-archive:/srv/small.tar", "oci:/srv/small"):
        node.run(["skopeo", "copy", source, f"dir:/srv/copy{len(source)}"]).or_raise()
    node2 = lab.add_node("node2")
    started(node2)
    node2.write("/srv/small.tar", node.path("/srv/small.tar").read_bytes())
    assert not node2.pull("skopeo", SMALL_1).ok
    assert refused(node2.tidegate("import", "/srv/small.tar"), "docker.io/library/small", "--public")
    assert listed(node2) == {} and told(node2, "cache", "stats")["bytes"] == 0

    node2.tidegate("import", "/srv/small.tar", "--public").or_raise()

    assert listed(node2) == {SMALL_1: "complete"}
    assert pulled(node2.pull("skopeo", SMALL_1), image)


def test_what_skopeo_saved_is_imported(lab: Lab, node: Node, registry: Registry) -> None:
    """C21: an archive and a directory of skopeo's; unnamed ones by `--as`; then served while it is dark."""
    started(node)
    image = lab.images[SINGLE_1]
    node.run(["skopeo", "copy", f"docker://{SINGLE_1}", f"oci-archive:/srv/named.tar:{SINGLE_1}"]).or_raise()
    node.run(["skopeo", "copy", f"docker://{SINGLE_1}", "oci-archive:/srv/unnamed.tar"]).or_raise()
    node.run(["skopeo", "copy", f"docker://{SINGLE_1}", "oci:/srv/layout"]).or_raise()
    node.tidegate("cache", "purge", "--all", "--yes").or_raise()

    assert refused(node.tidegate("import", "/srv/unnamed.tar"), "--as")
    node.tidegate("import", "/srv/named.tar").or_raise()
    node.tidegate("import", "/srv/unnamed.tar", "--as", "single:other").or_raise()
    node.tidegate("import", "/srv/layout", "--as", "single:dir").or_raise()

    assert set(listed(node)) == {SINGLE_1, "docker.io/library/single:other", "docker.io/library/single:dir"}
    registry.goes_dark()
    registry.forget()
    assert pulled(node.pull("podman", "docker.io/library/single:dir"), image)


def test_an_import_does_not_open_a_private_repository(lab: Lab, node: Node, registry: Registry) -> None:
    """C21, C15, I6: what its registry shows to some alone is not everyone's because it came as a file."""
    started(node)
    alice = registry.users["alice"]
    login = f"{alice.name}:{alice.password}"
    node.run(
        [
            "skopeo",
            "copy",
            "--src-creds",
            login,
            f"docker://{PRIVATE_1}",
            ARCHIVE,
        ]
    ).or_raise()
    assert refused(node.tidegate("import", "/srv/p.tar"), "not known", "--public")

    node.tidegate("import", "/srv/p.tar", "--public").or_raise()

    assert not node.pull("skopeo", PRIVATE_1).ok
    registry.goes_dark()
    assert not node.pull("skopeo", PRIVATE_1).ok, "its registry had just refused everyone"


def test_an_export_of_what_is_not_whole_says_what_is_missing(lab: Lab, node: Node) -> None:
    """C21: nothing is written, and it names the blobs and what to type."""
    started(node)
    image = lab.images[SINGLE_1]
    node.tidegate("pull", SINGLE_1).or_raise()
    node.tidegate("cache", "purge", image.largest_layer).or_raise()

    answer = node.tidegate("export", SINGLE_1, "-o", "/srv/single.tar")

    assert refused(answer, image.largest_layer, f"tidegate pull {SINGLE_1}")
    assert list(node.path("/srv").glob("*single*")) == []


# The doors


def test_the_cache_is_operated_over_the_socket_alone(node: Node) -> None:
    """C20, I6: not over TCP, and the socket is root's; without an agent each command says what to type."""
    absent = node.tidegate("cache", "list")
    assert refused(absent, "no agent is running", "tidegate agent")
    started(node)

    remote = node.run([*API, "http://127.0.0.1:9077/v1/cache/images"]).or_raise()
    purge = [*API, "-X", "POST", "-d", '{"all":true}']
    assert remote.stdout == "404"
    assert node.run([*purge, "http://127.0.0.1:9077/v1/cache/purge"]).or_raise().stdout == "404"
    local = ["--unix-socket", "/run/tidegate/agent.sock", "http://localhost/v1/cache/images"]
    assert node.run([*API, *local]).or_raise().stdout == "200"
    assert node.path("/run/tidegate/agent.sock").stat().st_mode & 0o007 == 0


def test_a_forged_archive_leaves_nothing(lab: Lab, node: Node) -> None:
    """C21, I2: an archive with one flipped bit is refused, and none of its blobs stays."""
    started(node)
    node.tidegate("pull", SINGLE_1).or_raise()
    node.tidegate("export", SINGLE_1, "-o", "/srv/single.tar").or_raise()
    node.tidegate("cache", "purge", "--all", "--yes").or_raise()
    path = node.path("/srv/single.tar")
    with tarfile.open(path) as archive:
        largest = max(archive.getmembers(), key=lambda member: member.size)
    data = bytearray(path.read_bytes())
    data[largest.offset_data + largest.size // 2] ^= 1
    node.write("/srv/forged.tar", bytes(data))

    assert refused(node.tidegate("import", "/srv/forged.tar"), "another digest")

    assert told(node, "cache", "stats")["bytes"] == 0
    assert listed(node) == {}
