"""Which file a path means, from mount tables as the kernel writes them."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_agent.clients.mounts import File, file_at, parse_mounts

BUNDLE = PurePosixPath("/etc/ssl/certs/ca-certificates.crt")
HOST = """\
24 30 0:22 / /proc rw,relatime shared:12 - proc proc rw
30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 30 0:27 / /tmp rw - tmpfs tmpfs rw
"""
HOSTS_BUNDLE = File("8:1", BUNDLE)


@pytest.mark.parametrize(
    ("table", "means"),
    {
        "the host": (HOST, HOSTS_BUNDLE),
        "a service with a /tmp of its own": (
            "91 90 8:1 / / rw - ext4 /dev/sda1 rw\n92 91 8:1 /tmp/private /tmp rw - ext4 /dev/sda1 rw\n",
            HOSTS_BUNDLE,
        ),
        "a container": ("70 60 0:51 / / rw - overlay overlay rw\n", File("0:51", BUNDLE)),
        "a container with the host's bundle mounted": (
            "70 60 0:51 / / rw - overlay overlay rw\n"
            "71 70 8:1 /etc/ssl/certs /etc/ssl/certs ro - ext4 /dev/sda1 rw\n",
            HOSTS_BUNDLE,
        ),
        "a bundle over the system's": (
            HOST + "40 30 0:60 / /etc/ssl/certs rw - tmpfs own rw\n",
            File("0:60", PurePosixPath("/ca-certificates.crt")),
        ),
        "one more over that": (
            HOST
            + "40 30 0:60 / /etc/ssl/certs rw - tmpfs own rw\n"
            + "41 40 0:61 / /etc/ssl/certs rw - tmpfs own rw\n",
            File("0:61", PurePosixPath("/ca-certificates.crt")),
        ),
        "hidden by a later mount above it": (
            HOST + "40 30 0:60 / /etc/ssl/certs rw - tmpfs own rw\n41 30 0:61 / /etc rw - tmpfs own rw\n",
            File("0:61", PurePosixPath("/ssl/certs/ca-certificates.crt")),
        ),
        "another root over the first": (
            HOST + "42 30 0:62 / / rw - tmpfs new rw\n",
            File("0:62", BUNDLE),
        ),
        "a folder of the disk for a root": (
            "70 60 8:1 /srv/root / rw - ext4 /dev/sda1 rw\n",
            File("8:1", PurePosixPath("/srv/root/etc/ssl/certs/ca-certificates.crt")),
        ),
        "a folder whose name has a space": (
            "70 60 8:1 /srv/my\\040root / rw - ext4 /dev/sda1 rw\n",
            File("8:1", PurePosixPath("/srv/my root/etc/ssl/certs/ca-certificates.crt")),
        ),
        "a chroot: no mount covers its root": ("44 30 0:22 / /proc rw - proc proc rw\n", None),
        "nothing": ("", None),
    }.values(),
)
def test_a_path_means_the_file_on_the_mount_that_is_on_top(table: str, means: File | None) -> None:
    """N9: the same file for both, then the same trust store, whatever the namespace."""
    assert file_at(parse_mounts(table), BUNDLE) == means


def test_mounts_next_to_the_way_do_not_count() -> None:
    """N9: /etc/ss covers nothing of /etc/ssl."""
    beside = HOST + "40 30 0:60 / /etc/ss rw - tmpfs own rw\n"

    assert file_at(parse_mounts(beside), BUNDLE) == HOSTS_BUNDLE


@given(st.text(alphabet="0123456789 /:-\\\nabe", max_size=300))
def test_any_table_gives_an_answer(text: str) -> None:
    """I8: also one whose mounts are each other's parents."""
    file_at(parse_mounts(text), BUNDLE)


def test_mounts_that_are_each_others_parents_lead_nowhere() -> None:
    """I8: no endless way."""
    circle = "1 2 0:1 / / rw - a a rw\n2 1 0:2 / / rw - a a rw\n"

    assert file_at(parse_mounts(circle), BUNDLE) is None
